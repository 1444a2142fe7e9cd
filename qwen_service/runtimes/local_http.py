"""A client for HTTP/1.1 over a unix socket or a loopback port, for engines on this machine.

It is lean, because every token passes here: httptools parses, and no objects are made but the bytes of the body
(docs/architecture.md compares it with aiohttp and httpx2).
"""

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import orjson
from httptools import HttpParserError, HttpResponseParser

REUSE_WITHIN = 2.0  # seconds; cpp-httplib closes an idle connection after 5
_CLOSE = "Connection: close\r\n"
BACKLOG_PAUSE = 0.005  # seconds until the next try when the server's backlog (5 in cpp-httplib) is full


class HttpError(Exception):
    """The server answered with a status other than 200."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body[:500].decode(errors='replace')}")
        self.status = status
        self.body = body


class LocalHttp:
    """The client. Raises OSError (TimeoutError included) when nobody listens or the connection breaks.

    `keep`: a connection that the server offers to keep is used again within two seconds, so that a request for ids and the
    generation that follows it share one: the engine has to wake up to accept another.
    """

    def __init__(self, place: Path | int, *, keep: bool = True) -> None:
        """`place`: a unix socket's path, or a port."""
        self._place = place
        self._keep = keep
        self._idle: list[_Connection] = []

    async def get(self, path: str, timeout: float) -> Any:
        """GET a JSON value; None when the answer is empty. Raises HttpError, or ValueError when it is not JSON."""
        return await self._json(b"", "GET", path, timeout)

    async def post(self, path: str, body: Any, timeout: float) -> Any:
        return await self._json(_content(body), "POST", path, timeout)

    async def events(self, path: str, body: Any, stall_timeout: float) -> "EventStream":
        """POST and return the stream of server-sent events, which the caller must close."""
        return EventStream(await self._send(_content(body), "POST", path, stall_timeout))

    def close(self) -> None:
        while self._idle:
            self._idle.pop().abort()

    async def _json(self, content: bytes, method: str, path: str, timeout: float) -> Any:
        connection = await self._send(content, method, path, timeout)
        try:
            body = await connection.read_all()
        finally:
            self._release(connection)
        if connection.status != 200:
            raise HttpError(connection.status, body)
        return orjson.loads(body) if body else None

    async def _send(self, content: bytes, method: str, path: str, timeout: float) -> "_Connection":
        connection = self._take_idle() or await self._connect(timeout)
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
            f"{'' if self._keep else _CLOSE}\r\n"
        )
        connection.begin(head.encode() + content, timeout)
        return connection

    def _release(self, connection: "_Connection") -> None:
        if connection.end() and self._keep:
            self._idle.append(connection)
        else:
            connection.abort()

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fresh():
                return connection
            connection.abort()
        return None

    async def _connect(self, timeout: float) -> "_Connection":
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout):
            if isinstance(self._place, int):
                _, connection = await loop.create_connection(lambda: _Connection(loop), "127.0.0.1", self._place)
                return connection
            while True:
                try:
                    dialled = dial(str(self._place))
                except BlockingIOError:
                    await asyncio.sleep(BACKLOG_PAUSE)
                    continue
                _, connection = await loop.create_unix_connection(lambda: _Connection(loop), sock=dialled)
                return connection


def _content(body: Any) -> bytes:
    return body if isinstance(body, bytes) else orjson.dumps(body)


def dial(path: str) -> socket.socket:
    """Connect. Raises BlockingIOError when the backlog is full, which event loops would turn into an error or a dead connection."""
    dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        dialled.setblocking(False)
        dialled.connect(path)
    except OSError:
        dialled.close()
        raise
    return dialled


class EventStream:
    """A stream of events. Only events count as a sign of life: a server sends pings from another thread than its work."""

    def __init__(self, connection: "_Connection") -> None:
        self._connection = connection
        self._reader = SseReader()

    async def read(self) -> list[bytes]:
        """The data of the events since the last call; empty at the end. Raises TimeoutError after a long silence."""
        while part := await self._connection.read():
            if self._connection.status != 200:
                raise HttpError(self._connection.status, part + await self._connection.read_all())
            if events := self._reader.feed(part):
                self._connection.postpone_timeout()
                return events
        if self._connection.status != 200:
            raise HttpError(self._connection.status, b"")
        return []

    def watch(self, seen: Callable[[bytes], None]) -> None:
        """Call `seen` with data as soon as it arrives, even while nobody reads."""
        self._connection.seen = seen

    def break_off(self) -> None:
        """Break the connection. Data that has arrived can still be read; then a ConnectionError follows."""
        self._connection.abort()

    def close(self) -> None:
        self._connection.end()
        self._connection.abort()  # cpp-httplib closes the connection after a stream, even if it offered to keep it


class _Connection(asyncio.Protocol):
    """One connection. An exchange fails `timeout` seconds after its last sign of life."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._body: list[bytes] = []
        self._error: OSError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport

    def begin(self, request: bytes, timeout: float) -> None:
        self.status = 0
        self.seen: Callable[[bytes], None] | None = None
        self._complete = False
        self._keep = False
        self._has_length = False
        self._parser = HttpResponseParser(self)
        self._timeout = timeout
        self._deadline = self._loop.time() + timeout
        self._timer = self._loop.call_at(self._deadline, self._check_deadline)
        self._transport.write(request)

    async def read(self) -> bytes:
        """The bytes of the body since the last call; empty at its end."""
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

    def end(self) -> bool:
        """End the exchange, read or not. Returns whether the connection can be used again."""
        self._timer.cancel()
        self._idle_since = time.monotonic()
        return self._complete and not self._body and self._error is None and self._keep

    def is_fresh(self) -> bool:
        return self._error is None and time.monotonic() - self._idle_since < REUSE_WITHIN

    def abort(self) -> None:
        self._transport.abort()

    def _check_deadline(self) -> None:
        if self._body or self._complete:  # our own reader is slow, not the server
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
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._fail(ConnectionAbortedError(f"the answer is not HTTP: {error}"))
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self.status and not self._has_length:  # a body without a length ends with the connection
            self._complete = True
        self._fail(ConnectionResetError("the connection was closed before the end of the answer"))

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: ARG002  # its signature
        self._keep = self._keep or name.lower() == b"keep-alive"
        self._has_length = self._has_length or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        if self.seen is not None:
            self.seen(body)

    def on_message_complete(self) -> None:
        self._complete = True
        self._keep = self._keep and self._parser.should_keep_alive()


class SseReader:
    """Parses server-sent events out of bytes, however the network cut them. IO-free."""

    def __init__(self) -> None:
        self._rest = b""  # bytes of an unfinished line
        self._data: list[bytes] = []  # data lines of the unfinished event

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of each event that these bytes complete. Comments, names and ids are dropped."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        events = []
        for line in lines:
            text = line.removesuffix(b"\r")
            if text.startswith(b"data:"):
                self._data.append(text[5:].removeprefix(b" "))
            elif not text and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events
