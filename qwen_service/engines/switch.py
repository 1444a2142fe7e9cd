"""Holds the served model, and replaces it by another: one switch at a time, with each step reported."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from qwen_service.engines.choice import ModelChoice
from qwen_service.engines.served import ServedModel
from qwen_service.errors import Loading, StartFailed
from qwen_service.models.catalog import same_name
from qwen_service.models.installed import InstalledModel
from qwen_service.process.uninterrupted import finish_even_if_cancelled

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `state`: waiting (for another switch), draining, stopping, loading; the last one is the model's own state."""

    model: str
    state: str
    progress: str = ""


Tell = Callable[[Step], None]


def _nobody(_: Step) -> None:
    pass


class Switch:
    """`current` is the served model; `leaving` is the same model while its running requests end before a switch."""

    def __init__(
        self, serve: Callable[[InstalledModel], ServedModel], choice: ModelChoice, *, drain_timeout: float
    ) -> None:
        self.current: ServedModel | None = None
        self.leaving: ServedModel | None = None
        self.to = ""  # the name of the model that is being switched to
        self._serve = serve
        self._choice = choice
        self._drain_timeout = drain_timeout
        self._one_at_a_time = asyncio.Lock()
        self._exchanging: asyncio.Task[ServedModel] | None = None
        self._tell: Tell = _nobody

    async def load(self, target: InstalledModel, tell: Tell = _nobody) -> ServedModel:
        """Let running requests end, stop the current model, start the new one. If that fails, start the old one again."""
        if self._one_at_a_time.locked():
            tell(Step(target.name, "waiting", f"a switch to {self.to} is going on" if self.to else ""))
        async with self._one_at_a_time:
            old = self.current
            if old is not None and same_name(old.name, target.name) and old.phase != "failed":
                await old.rest.wake()
                return old
            self._choice.refuse_impossible(target)
            return await self._replace(old, target, tell)

    async def reload(self) -> ServedModel | None:
        """Restart the current model after running requests have ended."""
        async with self._one_at_a_time:
            return await self._replace(self.current, self.current.installed, _nobody) if self.current else None

    def note_progress(self) -> None:
        """Note that an engine has changed, or got further in its load."""
        if self.leaving is None and self.current is not None and self.current.phase == "loading":
            self._tell(Step(self.current.name, "loading", self.current.progress))

    async def stop(self) -> None:
        if self._exchanging is not None:
            self._exchanging.cancel()
            await asyncio.gather(self._exchanging, return_exceptions=True)

    async def _replace(self, old: ServedModel | None, target: InstalledModel, tell: Tell) -> ServedModel:
        """Replace the model. If the client leaves while running requests are still waited for, the switch is dropped."""
        self.to, self.leaving, self._tell = target.name, old, tell
        try:
            if old is not None:
                await self._drain(old)
            self._exchanging = asyncio.create_task(self._exchange(old, target), name="model switch")
            return await finish_even_if_cancelled(self._exchanging)
        finally:
            self.to, self.leaving, self._tell = "", None, _nobody

    async def _drain(self, old: ServedModel) -> None:
        """Wait for running requests. Those that caused the switch do not count: they use no model yet."""
        try:
            async with asyncio.timeout(self._drain_timeout):
                while old.users:
                    self._tell(Step(self.to, "draining", f"requests to {old.name} that are running: {old.users}"))
                    await old.one_has_left()
        except TimeoutError:
            raise Loading(
                f"{old.name} was still busy after {self._drain_timeout:g} s (drain_timeout); {self.to} was not loaded."
                " Try again later.",
                retry_after=self._drain_timeout,
            ) from None

    async def _exchange(self, old: ServedModel | None, target: InstalledModel) -> ServedModel:
        if old is not None:
            self._tell(Step(target.name, "stopping", old.name))
            await old.stop()
        new = self._serve(target)
        self.current, self.leaving = new, None
        self.note_progress()
        await new.first_load_done()
        if new.phase == "ready":
            log.info("switched to %s", new.name)
            return new
        reason = new.last_error
        await new.stop()
        if old is not None:
            self.current = self._serve(old.installed)
        now = f"The service went back to {old.name}." if old is not None else "The service has no model now."
        raise StartFailed(f"{target.name} could not be loaded: {reason} {now}")


async def steps_of(switch: Callable[[Tell], Coroutine[Any, Any, ServedModel]]) -> AsyncGenerator[Step, None]:
    """Yield each step once. Raises what the switch raises. Closing the iterator leaves the switch."""
    steps: asyncio.Queue[Step | None] = asyncio.Queue()
    switching = asyncio.create_task(switch(steps.put_nowait), name="told switch")
    switching.add_done_callback(lambda _: steps.put_nowait(None))
    told: Step | None = None
    try:
        while (step := await steps.get()) is not None:
            if step != told:
                yield (told := step)
        model = switching.result()
        yield Step(model.name, model.phase)
    finally:
        switching.cancel()
        await asyncio.wait({switching})
