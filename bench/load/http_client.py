"""One HTTP/1.1 exchange on one fresh connection, with the time each part of the body arrived.

Nothing but the C parser runs while a reply streams: the body is kept as it came and read afterwards, so that the
measuring takes no time from what is measured (an httpx client alone costs 1 ms of CPU per token).
"""

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser


class ExchangeFailed(Exception):
    """No complete answer came. What had come is in `reply`."""

    def __init__(self, message: str, reply: "Reply") -> None:
        super().__init__(message)
        self.reply = reply


@dataclass(slots=True)
class Reply:
    sent: float = 0.0
    ended: float = 0.0
    status: int = 0
    parts: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(part for _, part in self.parts)


class Exchange(asyncio.Protocol):
    def __init__(self) -> None:
        self.reply = Reply()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = HttpResponseParser(self)
        self._now = 0.0

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._end(ExchangeFailed(f"not HTTP: {error}", self.reply))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(ExchangeFailed(f"the connection broke{f': {error}' if error else ''}", self.reply))

    def on_body(self, body: bytes) -> None:
        self.reply.parts.append((self._now, body))

    def on_message_complete(self) -> None:
        self.reply.status = self._parser.get_status_code()
        self._end(None)

    def _end(self, failure: ExchangeFailed | None) -> None:
        if self.done.done():
            return
        self.reply.ended = self._now or time.monotonic()
        if failure is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(failure)


class HttpClient:
    """Of one server. `headers` go with every request."""

    def __init__(self, url: str, headers: Mapping[str, str], *, timeout: float, socket: str | None = None) -> None:
        """`socket`: the unix socket on which it listens, instead of the host and port of its URL."""
        self._socket = socket
        parts = urlsplit(url)
        self.secure = parts.scheme == "https"
        self.host = parts.hostname or "localhost"
        self.port = parts.port or (443 if self.secure else 80)
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": parts.netloc, **headers}.items())
        self._timeout = timeout

    async def get(self, path: str) -> Reply:
        return await self._exchange("GET", path, b"", self._timeout)

    async def post(self, path: str, body: bytes) -> Reply:
        return await self._exchange("POST", path, body, self._timeout)

    async def _exchange(self, method: str, path: str, body: bytes, timeout: float) -> Reply:
        """Raises ExchangeFailed."""
        exchange = Exchange()
        try:
            async with asyncio.timeout(timeout):
                transport = await self._connect(exchange)
                try:
                    exchange.reply.sent = time.monotonic()
                    transport.write(self._request(method, path, body))
                    await exchange.done
                finally:
                    transport.abort()
        except TimeoutError:
            exchange.reply.ended = time.monotonic()
            raise ExchangeFailed(f"no complete answer within {timeout:g} s", exchange.reply) from None
        except OSError as error:
            raise ExchangeFailed(f"cannot connect: {error.strerror or error}", exchange.reply) from None
        return exchange.reply

    async def _connect(self, exchange: Exchange) -> asyncio.WriteTransport:
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            transport, _ = await loop.create_unix_connection(lambda: exchange, self._socket)
            return transport
        context = ssl.create_default_context() if self.secure else None
        tcp, _ = await loop.create_connection(lambda: exchange, self.host, self.port, ssl=context)
        return tcp

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"{head}\r\n".encode() + body
