"""Serves one HTTP exchange per connection, for clients that wait one second and then crash.

Every connection is closed after its answer: keep-alive costs 44 ms per call with the vendor's client library, which
sends headers and body in two writes with Nagle's algorithm on and so waits for a delayed acknowledgement. A fresh
connection acknowledges at once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import httptools
import orjson

MAX_BODY = 1 << 20  # bytes; the rest is read and dropped, so that the answer is not lost in a TCP reset
PATIENCE = 10.0  # seconds for a whole request
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"

Answer = dict[str, object]
Handler = Callable[[str, bytes], Answer | Awaitable[Answer]]  # (path with query, body) -> answer; never raises


class Connection(asyncio.Protocol):
    """A connection; also has the callbacks of its httptools parser."""

    def __init__(self, handler: Handler, open_ones: set["Connection"]) -> None:
        self._handler = handler
        self._open_ones = open_ones
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = bytearray()
        self._pending: asyncio.Task[None] | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._open_ones.add(self)
        self._deadline = asyncio.get_running_loop().call_later(PATIENCE, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._open_ones.discard(self)
        self._deadline.cancel()
        if self._pending is not None:
            self._pending.cancel()

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._send({"error": f"This is not HTTP: {error}"})

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if len(self._body) <= MAX_BODY:
            self._body += body

    def on_message_complete(self) -> None:
        if self._answered or self._pending is not None:
            return  # a second request on a connection that we said we close
        if len(self._body) > MAX_BODY:
            self._body.clear()
        answer = self._handler(self._url.decode("latin-1"), bytes(self._body))
        if isinstance(answer, dict):
            self._send(answer)
        else:
            self._pending = asyncio.ensure_future(self._send_when_ready(answer))

    async def _send_when_ready(self, answer: Awaitable[Answer]) -> None:
        self._send(await answer)

    def _send(self, answer: Answer) -> None:
        if self._answered:
            return
        self._answered = True
        content = orjson.dumps(answer)
        self._transport.write(HEAD % len(content) + content)
        self._transport.close()
