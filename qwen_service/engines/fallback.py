"""A model on the CPU that stands in while the card is down for long."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from qwen_service.engines.choice import ModelChoice
from qwen_service.engines.served import ServedModel
from qwen_service.errors import ServiceError, Unavailable
from qwen_service.models.installed import InstalledModel

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds between looks; a change of an engine makes it look at once
LINGERS = 60.0  # seconds the CPU model stays loaded after the card is back


class Fallback:
    """`model` is the CPU model while it is loaded. `trouble` says why `fallback_model` cannot be used."""

    def __init__(
        self,
        current: Callable[[], ServedModel | None],
        serve: Callable[[InstalledModel], ServedModel],
        *,
        after: float,
        lingers: float = LINGERS,
    ) -> None:
        """`after`: seconds that the current model must be down before its fallback, made by `serve`, stands in."""
        self.model: ServedModel | None = None
        self.trouble = ""
        self._current = current
        self._serve = serve
        self._after = after
        self._lingers = lingers
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, name: str, find: Callable[[str], InstalledModel], choice: ModelChoice) -> None:
        """Begin to watch the current model, to stand in for it with the installed model `name`."""
        try:
            model = find(name)
            choice.refuse_impossible(model)  # with accelerator: required the CPU never answers
            if model.spec.needs_npu:
                raise Unavailable(f"{model.name} needs the card, too. Name a model that runs on the CPU.")
        except ServiceError as error:
            self.trouble = f"fallback_model: {error.message}"
            log.error("%s", self.trouble)
            return
        self._task = asyncio.create_task(self._watch(model), name="fallback")

    def note_change(self) -> None:
        self._changed.set()

    def instead_of(self, model: ServedModel) -> ServedModel:
        """Return the fallback if it stands in for this model now, otherwise the model itself."""
        fallback = self.model
        if fallback is None or fallback.engine is None or model is not self._current():
            return model
        return fallback if model.down_for > self._after else model

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self.model is not None:
            await self.model.stop()

    async def _watch(self, model: InstalledModel) -> None:
        while True:
            self._changed.clear()
            try:
                patience = await self._look(model)
            except Exception as error:  # it must go on watching: the next try may succeed
                log.exception("%s cannot stand in, for an unexpected reason", model.name)
                self.trouble = f"fallback_model: {error!r}"
                patience = LOOK_EVERY
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._changed.wait()

    async def _look(self, model: InstalledModel) -> float:
        """Load the fallback when the card has been down for long, unload it when the card has been back for a while.

        Returns the seconds until the next look.
        """
        current = self._current()
        down = current.down_for if current is not None else 0.0
        if current is not None and down > self._after and self.model is None:
            log.warning("%s has been down for %.0f s; %s stands in on the CPU", current.name, down, model.name)
            self.model = self._serve(model)
            self.trouble = ""
        elif not down and self.model is not None:
            await self._dismiss(self.model)
        return max(0.05, self._after - down) if down and self.model is None else LOOK_EVERY

    async def _dismiss(self, fallback: ServedModel) -> None:
        await asyncio.sleep(self._lingers)
        current = self._current()
        if current is not None and current.engine is not None:
            await fallback.unused()
            await fallback.stop()
            self.model = None  # cleared last: a stop of the service in between must still find it
