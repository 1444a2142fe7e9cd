"""Keeps one runtime of one model running on one device: load, watch, restart with backoff, give up, stop.

An engine that was given up is tried again every minute: a driver may be late, or a person may repair it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol

from typing_extensions import TypeVar

from qwen_service.engine import Engine
from qwen_service.errors import InstallError, RuntimeFailure, ServiceError, StartFailed
from qwen_service.process.uninterrupted import finish_even_if_cancelled
from qwen_service.runtime import LoadProgress

log = logging.getLogger(__name__)

SECOND_CHANCE = 60.0  # seconds until an engine that was given up is tried again

Phase = Literal["stopped", "loading", "ready", "restarting", "failed"]


class Supervised(Protocol):
    """Something that a supervisor keeps running: it tells when it has failed, and is stopped once."""

    async def failed(self) -> RuntimeFailure: ...

    async def stop(self) -> None: ...


E = TypeVar("E", bound=Supervised, default=Engine)


@dataclass(slots=True)
class Backoff:
    """Seconds between restarts: doubling, and from the first again after a long enough run."""

    first: float = 0.5
    longest: float = 30.0
    good_time: float = 60.0
    _next: float = 0.0

    def after(self, uptime: float) -> float:
        if uptime >= self.good_time or not self._next:
            self._next = self.first
        delay, self._next = self._next, min(self.longest, self._next * 2)
        return delay


class Supervisor(Generic[E]):
    def __init__(
        self,
        name: str,
        bring_up: Callable[[LoadProgress], Awaitable[E]],
        *,
        on_change: Callable[[], None],
        on_progress: Callable[[], None] = lambda: None,
        backoff: Backoff | None = None,
        second_chance: float = SECOND_CHANCE,
    ) -> None:
        self.name = name
        self.phase: Phase = "stopped"
        self.progress = ""
        self.last_error = ""
        self.restarts = 0
        self.engine: E | None = None
        self._bring_up = bring_up
        self._on_change = on_change
        self._on_progress = on_progress
        self._backoff = backoff or Backoff()
        self._second_chance = second_chance
        self._told_at = 0.0
        self._has_run = False
        self._reported: asyncio.Future[RuntimeFailure] | None = None
        self._task: asyncio.Task[None] | None = None
        self._finished_loading = asyncio.Event()
        self.last_turn = 0.0  # monotonic time at which a generation last ended here
        self.first_load_done = asyncio.Event()  # the first load has succeeded or failed
        self.down_since = time.monotonic()

    def start(self) -> None:
        self.down_since = time.monotonic()
        self._enter("loading")
        self._task = asyncio.create_task(self._run(), name=f"supervisor {self.name}")

    async def stop(self) -> None:
        self._enter("stopped")  # set early, so that nobody starts waiting for it
        if self._task is None:
            return
        if not self._task.cancelling():  # a second cancel would interrupt the engine's stop
            self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        if self.phase != "stopped":  # a generation has reported the failure
            self._enter("stopped")

    def report(self, engine: E, failure: RuntimeFailure) -> None:
        """Report that the engine failed in a generation. It is replaced, unless that has happened already."""
        if engine is self.engine and self._reported is not None and not self._reported.done():
            self._reported.set_result(failure)
            self._lose_engine(failure)  # at once, so that no other request gets it

    async def finished_loading(self) -> None:
        """Wait until the engine is ready, given up, or stopped."""
        await self._finished_loading.wait()

    async def _run(self) -> None:
        while True:
            try:
                await self._one_life()
            except Exception as error:  # it must show in /health; a full disk, say, may pass
                reason = f"internal error: {error!r}"
                if (self.phase, self.last_error) != ("failed", reason):
                    log.exception("the supervisor of %s failed for an unexpected reason", self.name)
                self._give_up(reason)
                await asyncio.sleep(self._second_chance)

    async def _one_life(self) -> None:
        """Load the engine, watch it until it fails, and wait until it is time for the next one."""
        started = time.monotonic()
        try:
            engine = await self._bring_up(self._show_progress)
        except ServiceError as failure:
            # An engine that has run is never given up: a card can vanish for a while, for example during its reboot.
            if _is_permanent(failure) and not self._has_run:
                self._give_up(failure.message)
                await asyncio.sleep(self._second_chance)
            else:
                await self._pause(failure, uptime=0)
            return
        self._has_run = True
        ready = time.monotonic()
        log.info("%s is ready after %.1f s", self.name, ready - started)
        try:
            ended = await self._watch(engine)
        finally:
            self.engine = None
            await finish_even_if_cancelled(engine.stop())
        await self._pause(ended, uptime=time.monotonic() - ready)

    async def _watch(self, engine: E) -> ServiceError:
        self._reported = asyncio.get_running_loop().create_future()
        self.engine = engine
        self._enter("ready")
        died = asyncio.ensure_future(engine.failed())
        try:
            await asyncio.wait({died, self._reported}, return_when=asyncio.FIRST_COMPLETED)
            failure = self._reported.result() if self._reported.done() else died.result()
        finally:
            died.cancel()
        self._lose_engine(failure)
        return failure

    def _lose_engine(self, failure: ServiceError) -> None:
        self.engine = None
        self._enter("restarting", failure.message)

    async def _pause(self, failure: ServiceError, *, uptime: float) -> None:
        delay = self._backoff.after(uptime)
        self._enter("restarting", failure.message)
        log.error("%s failed and will be started again in %.1f s: %s", self.name, delay, failure.message)
        await asyncio.sleep(delay)
        self.restarts += 1

    def _give_up(self, reason: str) -> None:
        if (self.phase, self.last_error) != ("failed", reason):  # otherwise it was logged before
            log.error("%s cannot run: %s", self.name, reason)
        self._enter("failed", reason)

    def _show_progress(self, text: str) -> None:
        self.progress = text
        self._on_progress()
        if time.monotonic() - self._told_at >= 1:  # a vendor's program reports each of 31 layers
            self._told_at = time.monotonic()
            log.info("%s: %s", self.name, text)

    def _enter(self, phase: Phase, error: str = "") -> None:
        if self.phase == "ready" and phase != "ready":
            self.down_since = time.monotonic()
        self.phase = phase
        self.progress = ""
        self.last_error = error or self.last_error
        if phase != "loading":
            self.first_load_done.set()
        if phase in ("loading", "restarting"):
            self._finished_loading.clear()
        else:
            self._finished_loading.set()
        self._on_change()


def _is_permanent(failure: ServiceError) -> bool:
    """Whether a restart cannot help, for example because files of the model are missing or damaged."""
    return isinstance(failure, InstallError) or (isinstance(failure, StartFailed) and failure.permanent)
