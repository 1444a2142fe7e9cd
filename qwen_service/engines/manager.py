"""Manages the models: finds the one that a request means, serves it, switches.

A model is served by one supervisor per device (served.py). Supervisors restart engines; the scheduler
gives out their slots. fallback.py lets a CPU model stand in for a card that is down.
"""

import asyncio
import logging
from collections.abc import Callable

from qwen_service.engines.choice import ModelChoice
from qwen_service.engines.fallback import LINGERS, Fallback
from qwen_service.engines.loaders import Loaders, loaders_for
from qwen_service.engines.served import ServedModel
from qwen_service.engines.simulation import simulated
from qwen_service.engines.supervisor import Supervisor
from qwen_service.engines.switch import Switch, Tell
from qwen_service.engines.waiting_room import Patience, WaitingRoom
from qwen_service.errors import Loading, NotLoaded, ServiceError, Unavailable, UnknownModel, Unsupported
from qwen_service.models.catalog import Catalog, is_called, plain_name, unaliased
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.models.personas import Persona, Personas
from qwen_service.process.daemon_threads import in_daemon_thread
from qwen_service.settings import Settings

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0  # seconds, for a model where there is none


def _failure_was_told(switch: "asyncio.Task[ServedModel]") -> None:
    """Read the error of a switch whose request has given up waiting: /health and the log already have it."""
    if not switch.cancelled() and (error := switch.exception()) is not None:
        log.debug("a switch failed after its request had given up waiting: %s", error)


class ModelManager:
    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        machine: Machine,
        *,
        on_change: Callable[[], None],
        loaders: Loaders = loaders_for,
        fallback_lingers: float = LINGERS,
        personas: Personas | None = None,
        room: WaitingRoom | None = None,
        loads_quickly: Callable[[], bool] | None = None,
    ) -> None:
        self.room = room or WaitingRoom(settings.queue_size, settings.queue_timeout)
        self._settings = settings
        self._catalog = catalog
        self._machine = machine
        self.personas = personas or Personas()
        self._choice = ModelChoice(settings, catalog, machine)
        self._on_change = on_change
        self._loaders = loaders
        self._loads_quickly = loads_quickly
        self._switch = Switch(self._serve, self._choice, drain_timeout=settings.drain_timeout)
        self._fallback = Fallback(
            lambda: self.current,
            lambda model: self._serve(model, is_fallback=True),
            after=settings.fallback_after,
            lingers=fallback_lingers,
        )
        self._awaited: asyncio.Task[None] | None = None  # while there is no model
        self._trouble = ""

    @property
    def current(self) -> ServedModel | None:
        return self._switch.current

    @property
    def fallback(self) -> ServedModel | None:
        """The CPU model while it stands in for the card, or is about to."""
        return self._fallback.model

    @property
    def trouble(self) -> str:
        """Why there is no current model, or no fallback."""
        return self._trouble if self.current is None else self._fallback.trouble

    @property
    def switching_to(self) -> str:
        """The name of the model that is being switched to; empty when none is."""
        return self._switch.to

    async def start(self) -> None:
        """Choose a model and begin to load it; returns at once. Where there is none, the first that is installed later."""
        if (chosen := await self._first()) is not None:
            self._begin(chosen)
        elif not self._settings.simulate:
            self._awaited = asyncio.create_task(self._until_installed(), name="wait for a model")

    async def _first(self) -> InstalledModel | None:
        """None where no model can be served; `trouble` says why."""
        try:
            if name := self._settings.simulate:
                return await in_daemon_thread(simulated, name, self._settings)  # it may have to fetch a tokenizer
            return self._choice.first()
        except (ServiceError, OSError) as error:  # it is tried again: a disk may come back
            trouble = error.message if isinstance(error, ServiceError) else str(error)
            if trouble != self._trouble:
                log.error("no model can be served: %s", trouble)
            self._trouble = trouble
            return None

    async def _until_installed(self) -> None:
        seen = None
        while self.current is None:
            await asyncio.sleep(LOOK_EVERY)
            chosen = await self._first()
            now = (chosen.name, chosen.size) if chosen is not None else None
            if chosen is not None and now == seen and self.current is None and not self.switching_to:
                self._begin(chosen)
            seen = now  # a file that is being copied grows between two looks

    def _begin(self, chosen: InstalledModel) -> None:
        if chosen.spec.stopgap:
            log.warning("%s: %s", chosen.spec.title or chosen.name, chosen.spec.stopgap)
        self._switch.current = self._serve(chosen)
        if self._settings.fallback_model is not None and chosen.spec.needs_npu:
            self._fallback.start(self._settings.fallback_model, self.find, self._choice)

    async def stop(self) -> None:
        if self._awaited is not None:
            self._awaited.cancel()
            await asyncio.wait({self._awaited})
        await self._switch.stop()
        current = [self.current.stop()] if self.current is not None else []
        await asyncio.gather(self._fallback.stop(), *current)

    async def obtain(self, name: str | None, patience: Patience | None = None) -> ServedModel:
        """Find the served model that a request means, and switch to it if `autoload` allows.

        Raises UnknownModel, Unsupported, NotLoaded, Unavailable, QueueFull, Loading, or the reason why the switch failed.
        """
        wanted = self._means(name)
        if wanted is self._switch.leaving:
            raise Loading(f"{wanted.name} is being replaced by {self.switching_to}. Try again in a moment.")
        if isinstance(wanted, ServedModel):
            return self._fallback.instead_of(wanted)
        if not wanted.spec.chats:
            raise Unsupported(f"{wanted.name} does not support chat: it is a model for embeddings.", param="model")
        if not self._autoloads(wanted):
            current = self.current.name if self.current is not None else "none"
            raise NotLoaded(
                f"{wanted.name} is installed, but not loaded (loaded: {current}). An administrator can switch with"
                " POST /v1/models/load, or set `autoload: on`.",
                param="model",
            )
        with self.room.wait_for_model():
            return await self._switched(wanted.name, patience or self.room.arrive())

    async def _switched(self, name: str, patience: Patience) -> ServedModel:
        """Wait for a switch. It goes on when the request's time is over, so that the next request finds the model loaded."""
        switch = asyncio.create_task(self.load(name), name=f"switch to {name}")
        switch.add_done_callback(_failure_was_told)
        try:
            await asyncio.wait({switch}, timeout=patience.left)
        except asyncio.CancelledError:
            switch.cancel()
            await asyncio.wait({switch})
            raise
        if not switch.done():
            raise Loading(
                f"{name} was not loaded within {patience.seconds:g} s (queue_timeout); loading goes on", retry_after=5
            )
        return switch.result()

    async def load(self, name: str, tell: Tell = lambda _: None) -> ServedModel:
        """Switch to an installed model (switch.py), and tell each step."""
        return await self._switch.load(self.find(name), tell)

    async def reload(self) -> ServedModel:
        """Restart the current model, after running work has ended. Raises Unavailable where there is none."""
        if (model := await self._switch.reload()) is None:
            raise Unavailable(self.trouble)
        return model

    def find(self, name: str) -> InstalledModel:
        """Find an installed model by name, alias, or the name of one of its personas. Raises UnknownModel."""
        return self._catalog.find_installed(self._base_of(name), self.installed())

    def persona(self, name: str | None) -> Persona | None:
        """The persona that a request for this name means, if it means one."""
        return self.personas.find(unaliased(name, self._settings.model_aliases)) if name else None

    def personas_here(self) -> list[tuple[Persona, InstalledModel]]:
        """The personas whose model is installed, each with its model."""
        by_name = {plain_name(name): model for model in self.installed() for name in model.spec.names}
        found = ((persona, by_name.get(plain_name(persona.base))) for persona in self.personas.all())
        return [(persona, model) for persona, model in found if model is not None]

    def installed(self) -> list[InstalledModel]:
        models = self._catalog.installed()
        if self.current is not None and self.current.name not in [model.name for model in models]:
            models.insert(0, self.current.installed)
        return models

    def served(self, model: InstalledModel) -> ServedModel | None:
        return next((s for s in (self.current, self.fallback) if s is not None and s.name == model.name), None)

    def _means(self, name: str | None) -> ServedModel | InstalledModel:
        for served in (self.current, self.fallback):
            if served is not None and (not name or is_called(served.spec, self._base_of(name))):
                return served
        if not name:
            raise Unavailable(self.trouble)
        try:
            return self.find(name)
        except UnknownModel:
            if self._settings.unknown_model == "default" and self.current is not None:
                return self.current
            raise

    def _base_of(self, name: str) -> str:
        return self.personas.base_of(unaliased(name, self._settings.model_aliases))

    def _autoloads(self, model: InstalledModel) -> bool:
        if self._settings.autoload == "auto":
            on_card = self.current is not None and self.current.spec.needs_npu
            return not (model.spec.needs_npu or on_card)
        return self._settings.autoload == "on"

    def _serve(self, model: InstalledModel, *, is_fallback: bool = False) -> ServedModel:
        loaders = self._loaders(model, self._settings, self._machine)
        supervisors = tuple(
            Supervisor(name, load, on_change=self._note_change, on_progress=self._switch.note_progress)
            for name, load in loaders.items()
        )
        unload = self._settings.unload_when_idle or None
        served = ServedModel(model, supervisors, is_fallback, unload, self._loads_quickly)
        served.start()
        return served

    def _note_change(self) -> None:
        self._fallback.note_change()
        self._switch.note_progress()
        self._on_change()
