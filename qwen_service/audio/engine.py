"""A speech program of the service: a supervisor keeps it running, and its requests are served one by one, in order.

The program is either the vendor's, started by us, or any server with OpenAI's audio routes, joined by its URL.
"""

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TypeVar, cast

from qwen_service.audio.program import Answer, SpeechProgram, SpeechServer
from qwen_service.engines.supervisor import Phase, Supervisor
from qwen_service.errors import Loading, QueueFull, QueueTimeout, Stalled, Unavailable
from qwen_service.runtime import LoadProgress
from qwen_service.settings import Settings

T = TypeVar("T")


class SpeechEngine:
    def __init__(self, program: SpeechProgram, settings: Settings) -> None:
        self.program = program
        self._settings = settings
        self._timeout = settings.speech_timeout
        self._supervisor: Supervisor[SpeechServer] = Supervisor(program.kind, self._bring_up, on_change=lambda: None)
        self._turns = Turns(settings.queue_size, settings.queue_timeout)

    @property
    def supervisor(self) -> "Supervisor[SpeechServer]":
        return self._supervisor

    @property
    def phase(self) -> Phase:
        return self._supervisor.phase

    def start(self) -> None:
        self._supervisor.start()

    async def stop(self) -> None:
        await self._supervisor.stop()
        await self._turns.stop()

    async def models(self) -> tuple[str, ...]:
        return (await self._ready()).models

    async def ask(self, ask: Callable[[SpeechServer], Awaitable[Answer]]) -> Answer:
        """Send one request in its turn. Raises a Busy error, Unavailable or a RuntimeFailure.

        When the caller is cancelled, a request that has begun goes on."""
        return await self._turns.take(lambda: self._ask(ask))

    async def _ask(self, ask: Callable[[SpeechServer], Awaitable[Answer]]) -> Answer:
        server = await self._ready()
        try:
            async with asyncio.timeout(self._timeout):
                return await ask(server)
        except TimeoutError:
            failure = Stalled(f"{self.program.kind}: no answer within {self._timeout:g} s (speech_timeout).")
            self._supervisor.report(server, failure)
            raise failure from None

    async def _ready(self) -> SpeechServer:
        supervisor = self._supervisor
        try:
            async with asyncio.timeout(self._settings.queue_timeout):
                await supervisor.finished_loading()
        except TimeoutError:
            raise Loading(f"{self.program.kind} is still {supervisor.phase}: {supervisor.last_error}") from None
        if supervisor.engine is None:
            raise Unavailable(f"{self.program.kind} cannot run: {supervisor.last_error}")
        return supervisor.engine

    async def _bring_up(self, progress: LoadProgress) -> SpeechServer:
        # Imported when needed: without speech programs no HTTP client is loaded.
        start = import_module("qwen_service.audio.server").bring_up
        return await cast(BringUpSpeech, start)(self.program, self._settings, progress)


BringUpSpeech = Callable[[SpeechProgram, Settings, LoadProgress], Awaitable[SpeechServer]]


class Turns:
    """A line: one at a time, first come first served, bounded in length and in waiting time."""

    def __init__(self, most_waiting: int, patience: float) -> None:
        self._lock = asyncio.Lock()
        self._most_waiting, self._patience = most_waiting, patience
        self._running: asyncio.Task[object] | None = None
        self.waiting = 0

    @property
    def busy(self) -> bool:
        return self._lock.locked()

    async def take(self, work: Callable[[], Awaitable[T]]) -> T:
        """Wait for the turn. The program goes on working when its client leaves, so the next one waits for that, too."""
        if self.busy and self.waiting >= self._most_waiting:
            raise QueueFull(f"The line for speech is full (queue_size: {self._most_waiting}). Try again later.")
        self.waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await self._lock.acquire()
        except TimeoutError:
            raise QueueTimeout(f"No turn within {self._patience:g} s (queue_timeout); try again later.") from None
        finally:
            self.waiting -= 1
        task = asyncio.create_task(self._work(work))
        self._running = task
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    async def _work(self, work: Callable[[], Awaitable[T]]) -> T:
        return await work()

    def _ended(self, task: "asyncio.Task[T]") -> None:
        self._lock.release()
        if not task.cancelled():
            task.exception()  # read it: the caller may have left
