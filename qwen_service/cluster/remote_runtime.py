"""A Runtime whose generations run on the replicas of a cluster: the router chooses one for each."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, Protocol, Self
from uuid import uuid4

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from qwen_service.chat import Sampling
from qwen_service.cluster.roster import Roster
from qwen_service.cluster.wire import Item, Work
from qwen_service.errors import Died, Loading, RuntimeFailure, ServiceError, StartFailed
from qwen_service.runtime import Limits, LoadProgress, Piece, Prefill, Prompt, Runtime

ATTEMPTS = 3  # tries of a generation that has produced nothing yet
STOP_PATIENCE = 30.0  # seconds that a replica may take to stop; then the slot counts as free
FAILED = (RayError, RayServeException)


class Stream(Protocol):
    """A streaming call of a deployment handle."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Item: ...

    def cancel(self) -> Any: ...


class RemoteRuntime(Runtime):
    """The runtime. `call` sends a Work; `roster` knows the replicas. The failure of one replica is not a failure of all."""

    fails_as_one = False

    def __init__(self, call: Callable[[Work], Stream], roster: Roster, *, waits: float) -> None:
        self._call = call
        self._roster = roster
        self._waits = waits

    async def start(self, progress: LoadProgress) -> Limits:
        while not self._roster.ready:
            progress(self._roster.story())
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._roster.until(lambda roster: roster.ready)
        self.capabilities = self._roster.capabilities
        return self._roster.limits

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        for attempt in range(1, ATTEMPTS + 1):
            work = Work(uuid4().hex, prompt, sampling)
            stream, where = self._call(work), ""
            try:
                while (item := await self._next(stream, has_begun=bool(where))) is not None:
                    where = where or self._roster.place_of(work.key)
                    if isinstance(item, ServiceError):
                        raise item
                    yield item
                return
            except FAILED as error:
                if where or attempt == ATTEMPTS or isinstance(error, RayTaskError):
                    raise _explained(where or "an engine of the cluster", error) from error
            finally:
                await self._end(stream, work)

    async def _next(self, stream: Stream, *, has_begun: bool) -> Item | None:
        """The next item; None: the stream is over. Raises Loading when no replica begins the work in time."""
        try:
            if has_begun:
                return await anext(stream)
            async with asyncio.timeout(self._waits):
                return await anext(stream)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            raise Loading(f"no engine took the request within {self._waits:g} s: {self._roster.story()}") from None

    async def _end(self, stream: Stream, work: Work) -> None:
        """Cancel the work if it still runs, and wait until the card is free."""
        stream.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_PATIENCE):
                await self._roster.ended(work.key)

    async def failed(self) -> RuntimeFailure:
        await self._roster.until(lambda roster: not roster.ready)
        return StartFailed(f"no engine of the cluster is ready: {self._roster.story()}")

    async def stop(self) -> None:
        """Does nothing: the replicas belong to the cluster."""


def _explained(where: str, error: Exception) -> ServiceError:
    if isinstance(error, RayTaskError):
        return RuntimeFailure(f"internal error on {where}: {error.cause!r}")
    return Died(f"{where} was lost while it worked on this request. Ask again: another one will answer.")
