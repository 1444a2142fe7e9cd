"""A client that costs next to nothing: one request on one connection, timestamps taken, bytes kept for later.

Anything that parses while it measures (httpx, an SDK) takes CPU time from the engine and distorts what it measures.
"""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import orjson

_HAS_TEXT = re.compile(rb'"(?:content|text)":\s*"(?!")')


@dataclass(frozen=True)
class Target:
    """A route: where it is, and how a request for it is written and its token count read."""

    name: str
    path: str
    address: str | tuple[str, int]  # of a unix socket, or of TCP
    body: Callable[[str, int], dict[str, Any]]  # of a question and max_tokens
    token_count: re.Pattern[bytes]


@dataclass(frozen=True)
class Answer:
    first_text: float  # seconds from sending
    duration: float
    tokens: int
    content: bytes


async def ask(target: Target, question: str, max_tokens: int) -> Answer:
    return await send(target, orjson.dumps(target.body(question, max_tokens)))


async def send(target: Target, body: bytes) -> Answer:
    head = f"POST {target.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    loop = asyncio.get_running_loop()
    connection = _Connection(request, loop.create_future())
    if isinstance(target.address, str):
        await loop.create_unix_connection(lambda: connection, target.address)
    else:
        await loop.create_connection(lambda: connection, *target.address)
    await connection.ended
    return connection.answer(target)


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, ended: asyncio.Future[None]) -> None:
        self.ended = ended
        self._request = request
        self._parts: list[bytes] = []
        self._sent = time.perf_counter()
        self._first_text = 0.0
        self._last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._last = time.perf_counter()
        if not self._first_text and _HAS_TEXT.search(data):
            self._first_text = self._last
        self._parts.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def answer(self, target: Target) -> Answer:
        content = b"".join(self._parts)
        if not content.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{target.name} answered {content[:600].decode(errors='replace')}")
        counts = target.token_count.findall(content)
        if not counts:
            raise RuntimeError(f"{target.name} gave no token count: {content[-600:].decode(errors='replace')}")
        return Answer(self._first_text - self._sent, self._last - self._sent, int(counts[-1]), content)
