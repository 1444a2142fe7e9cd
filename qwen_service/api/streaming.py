"""Sends a reply over HTTP while it is generated. All dialects share this code; it knows none of them.

- The status line is sent with the first chunk or error, so that a refusal has its status and Retry-After. A request that
  waits in the line or for a model gets its status line after `STATUS_WITHIN` at the latest, when clients and proxies
  would give up. One whose work has begun gets it after `HEADERS_AFTER`, however long prefill takes.
- After the headers a ping (a comment line, where the format has one) keeps the connection alive in every silence.
- A client that leaves cancels the work, streaming or not: closing the events frees the slot or the place in the line.
- An error after the headers is sent as the dialect's in-stream error, and the stream ends. Log and metrics give such a
  request the status that its error would have had.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwen_service.api.reply import Dialect, json_response
from qwen_service.chat import Event
from qwen_service.errors import ServiceError, ShuttingDown
from qwen_service.request_record import recording

log = logging.getLogger(__name__)

STATUS_WITHIN = 15.0  # seconds
HEADERS_AFTER = 2.0  # seconds from the first event
PING_EVERY = 10.0  # seconds

Events = AsyncGenerator[tuple[int, Event], None]  # (index of the choice, event)


class WholeReply(Response):
    """A response that is computed while watching for the client to leave. Its errors are answered by the app.

    `compute` returns a Response, or the content of a JSON answer; `headers` is called when that is known.
    """

    def __init__(
        self,
        compute: Callable[[], Coroutine[Any, Any, Response | Mapping[str, Any]]],
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._compute, self._reply_headers = compute, headers
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await until_disconnect(self._compute(), receive)
        if answer is not None:
            response = answer if isinstance(answer, Response) else json_response(answer, headers=self._reply_headers())
            await response(scope, receive, send)


class LateReply(Response, ABC):
    """A response whose status is open until it begins: an error before that is raised, and answered by the app.

    `headers` is called when it begins.
    """

    def __init__(self, media_type: str, headers: Callable[[], Mapping[str, str]]) -> None:
        self._media_type, self._reply_headers = media_type, headers
        self._last_sent = 0.0
        self.begun = False
        self.background = None

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(self.stream(send), receive)
        except Exception as error:
            if not self.begun:
                raise
            await self.break_off(error, send)

    @abstractmethod
    async def stream(self, send: Send) -> None:
        """Send all of it."""

    @abstractmethod
    async def break_off(self, error: Exception, send: Send) -> None:
        """End what has begun. Raise the error where only a cut connection can tell of it."""

    async def begin(self, send: Send) -> None:
        """Send the headers, with those that keep proxies and browsers from holding a stream back."""
        self.begun = True
        unbuffered = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        fields = {"content-type": self._media_type, **unbuffered, **self._reply_headers()}
        raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def send_chunk(self, send: Send, chunk: bytes) -> None:
        if not self.begun:
            await self.begin(send)
        self._last_sent = time.monotonic()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"", "more_body": False})


T = TypeVar("T")


class StreamReply(LateReply, Generic[T]):
    """A response that streams: it begins at the first chunk, or when the time for the status line is over."""

    def __init__(
        self,
        events: AsyncGenerator[T, None],
        encode: Callable[[AsyncGenerator[T, None]], AsyncGenerator[bytes, None]],
        dialect: Dialect,
        headers: Callable[[], Mapping[str, str]],
        *,
        status_within: float = STATUS_WITHIN,
        headers_after: float = HEADERS_AFTER,
        ping_every: float = PING_EVERY,
    ) -> None:
        super().__init__(dialect.media_type, headers)
        self._events = events
        self._encode = encode
        self._dialect = dialect
        self._status_within = status_within
        self._headers_after = headers_after
        self._ping_every = ping_every
        self._is_worked_on = asyncio.Event()

    async def stream(self, send: Send) -> None:
        pings = asyncio.create_task(self._send_pings(send))
        try:
            await self._send_chunks(send)
        finally:
            pings.cancel()
        await self.end(send)

    async def break_off(self, error: Exception, send: Send) -> None:
        if not isinstance(error, ServiceError):  # a defect: the client must still learn that the reply is incomplete
            log.error("A streamed reply failed by a defect of the service", exc_info=error)
            error = ServiceError("The service failed by a defect of its own; its log has the details.")
        record = recording()
        record.error, record.status = type(error).__name__, self._dialect.error_response(error).status_code
        await self.send_chunk(send, self._dialect.error_chunk(error))
        await self.end(send)

    async def _send_chunks(self, send: Send) -> None:
        async with aclosing(self._noted()) as events, aclosing(self._encode(events)) as chunks:
            async for chunk in chunks:
                await self.send_chunk(send, chunk)

    async def _noted(self) -> AsyncGenerator[T, None]:
        """Pass the events on, and note at the first one that the work has begun."""
        async with aclosing(self._events) as events:
            async for event in events:
                self._is_worked_on.set()
                yield event

    async def _send_pings(self, send: Send) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._status_within):
                await self._is_worked_on.wait()
                await asyncio.sleep(self._headers_after)
        if not self.begun:
            await self.begin(send)
        while ping := self._dialect.ping:
            silence = time.monotonic() - self._last_sent
            if silence >= self._ping_every:
                await self.send_chunk(send, ping)
                silence = 0.0
            await asyncio.sleep(self._ping_every - silence)


async def until_disconnect(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """Run `work` and return its result. When the client leaves, cancel the work, let it clean up, and return None.

    Raises ShuttingDown when the server stops and cancels the request.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    except asyncio.CancelledError:
        raise ShuttingDown("the service is stopping") from None
    finally:
        given_up = not task.done()
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})
        if given_up and not task.cancelled() and (error := task.exception()) is not None:
            log.error("A reply failed after its client had left", exc_info=error)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def merged(streams: Sequence[AsyncGenerator[Event, None]]) -> Events:
    """Merge the events of several replies as they come, each with the index of its reply. One failure ends all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event] | _Ended] = asyncio.Queue(maxsize=64)
    pumps = [asyncio.ensure_future(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            item = await queue.get()
            if isinstance(item, tuple):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                running -= 1
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Ended:
    error: Exception | None = None


async def _pump(
    index: int, stream: AsyncGenerator[Event, None], queue: asyncio.Queue[tuple[int, Event] | _Ended]
) -> None:
    ended = _Ended()
    try:
        async with aclosing(stream) as events:
            async for event in events:
                await queue.put((index, event))
    except Exception as error:  # raised again by the consumer
        ended = _Ended(error)
    await queue.put(ended)
