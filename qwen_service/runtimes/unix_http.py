"""HTTP/1.1 over a unix socket, for engines on this machine: one exchange per connection, nothing to keep alive.

Lean, because it is passed by every token: httptools parses, and no object is made but the bytes of the body.
"""

import asyncio
from pathlib import Path
from typing import Any, cast

import orjson
from httptools import HttpParserError, HttpResponseParser

from qwen_service.runtimes.sse import SseReader


class HttpError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body[:500].decode(errors='replace')}")
        self.status = status
        self.body = body


class UnixHttp:
    """Raises OSError when nobody listens or the connection breaks; a TimeoutError is one."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    async def get(self, path: str, timeout: float) -> Any:
        return await self._json(b"", "GET", path, timeout)

    async def post(self, path: str, body: Any, timeout: float) -> Any:
        return await self._json(orjson.dumps(body), "POST", path, timeout)

    async def events(self, path: str, body: Any, stall_timeout: float) -> "EventStream":
        """POST, for a stream of server-sent events. To be closed."""
        return EventStream(await self._open(orjson.dumps(body), "POST", path, stall_timeout))

    async def _json(self, content: bytes, method: str, path: str, timeout: float) -> Any:
        exchange = await self._open(content, method, path, timeout)
        try:
            body = await exchange.read_all()
        finally:
            exchange.close()
        if exchange.status != 200:
            raise HttpError(exchange.status, body)
        return orjson.loads(body)

    async def _open(self, content: bytes, method: str, path: str, timeout: float) -> "_Exchange":
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        _, exchange = await loop.create_unix_connection(
            lambda: _Exchange(loop, head.encode() + content, timeout), str(self.socket)
        )
        return exchange


class EventStream:
    """Only events count as a sign of life: a server's pings come from another thread than its work."""

    def __init__(self, exchange: "_Exchange") -> None:
        self._exchange = exchange
        self._reader = SseReader()

    async def read(self) -> list[bytes]:
        """The data of the events that came since; empty at the end. TimeoutError when there is none for too long."""
        while part := await self._exchange.read():
            if self._exchange.status != 200:
                raise HttpError(self._exchange.status, part + await self._exchange.read_all())
            if events := self._reader.feed(part):
                self._exchange.postpone_timeout()
                return events
        return []

    def close(self) -> None:
        self._exchange.close()


class _Exchange(asyncio.Protocol):
    """One request and its response. Ends by itself `timeout` seconds after the last sign of life."""

    def __init__(self, loop: asyncio.AbstractEventLoop, request: bytes, timeout: float) -> None:
        self.status = 0
        self._loop = loop
        self._request = request
        self._timeout = timeout
        self._deadline = loop.time() + timeout
        self._timer = loop.call_at(self._deadline, self._check_deadline)
        self._parser = HttpResponseParser(self)
        self._body: list[bytes] = []
        self._complete = False
        self._error: OSError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport

    async def read(self) -> bytes:
        """What has come of the body since; nothing at its end."""
        while not self._body and not self._complete:
            if self._error is not None:
                raise self._error
            self._reader = self._loop.create_future()
            await self._reader
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        return body

    async def read_all(self) -> bytes:
        parts = []
        while part := await self.read():
            parts.append(part)
        return b"".join(parts)

    def postpone_timeout(self) -> None:
        self._deadline = self._loop.time() + self._timeout

    def close(self) -> None:
        self._timer.cancel()
        self._transport.abort()

    def _check_deadline(self) -> None:
        if self._body or self._complete:  # it is our reader who is slow
            self.postpone_timeout()
        if self._deadline > self._loop.time():
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)
        else:
            self._fail(TimeoutError(f"no sign of life for {self._timeout:.0f} s"))

    def _fail(self, error: OSError) -> None:
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio.Transport.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._fail(ConnectionAbortedError(f"not HTTP: {error}"))
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._fail(ConnectionResetError("the connection was closed before the end of the answer"))

    # httptools' callbacks

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._complete = True
