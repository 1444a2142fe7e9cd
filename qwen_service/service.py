"""All parts of the service, wired, and in which order they start and stop. The HTTP side is app.py's."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from qwen_service.audio.speech_to_text import SpeechToText
from qwen_service.audio.text_to_speech import TextToSpeech
from qwen_service.card.monitor import card_monitor
from qwen_service.engine import Engine
from qwen_service.engines.embeddings import Embeddings
from qwen_service.engines.loaders import Loaders, loaders_for
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.waiting_room import WaitingRoom
from qwen_service.install.pulls import Pulls
from qwen_service.models.catalog import Catalog
from qwen_service.models.machine import Machine
from qwen_service.models.personas import Personas
from qwen_service.operation.logs import log_request
from qwen_service.operation.metrics import Metrics
from qwen_service.operation.state import Overview, Replicas
from qwen_service.pipeline.cancellation import Cancellations
from qwen_service.pipeline.chat_completion import ChatCompletion
from qwen_service.pipeline.conversation import SessionManager
from qwen_service.pipeline.fairness import Priorities
from qwen_service.pipeline.head_file import HeadFile, LineFile
from qwen_service.pipeline.pictures import PictureBounds
from qwen_service.pipeline.scheduler import Scheduler
from qwen_service.pipeline.stable_prefix import StablePrefix
from qwen_service.pipeline.warming import Warmer
from qwen_service.request_record import RequestRecord
from qwen_service.settings import Settings

log = logging.getLogger(__name__)


class Listener(Protocol):
    """A further port of the service."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Service:
    """All parts, wired. Nothing runs before start()."""

    def __init__(
        self,
        settings: Settings,
        *,
        loaders: Loaders = loaders_for,
        machine: Machine | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        self.settings = settings
        self.version = _version()
        self.room = WaitingRoom(settings.queue_size, settings.queue_timeout)
        self.scheduler = Scheduler(self.room, paused_reason=self.paused_reason)
        machine = machine or Machine()
        self.catalog = Catalog.load(settings.models_dir)
        self.embeddings = Embeddings(settings, self.catalog)
        self.pulls = Pulls(settings.models_dir, machine)
        self.personas = Personas.load(settings.models_dir)
        self.models = ModelManager(
            settings,
            self.catalog,
            machine,
            on_change=self._note_change,
            room=self.room,
            loaders=loaders,
            personas=self.personas,
            loads_quickly=replicas.loads_quickly if replicas is not None else None,
        )
        self.cards = card_monitor(settings, machine, on_change=self._note_change)
        self.cancellations = Cancellations()
        self.sessions = SessionManager(overflow=settings.context_overflow, default_max_tokens=settings.max_tokens)
        self.warmer = self._warmer() if settings.warm == "on" else None
        self.chat = self._chat_completion()
        self.ears = SpeechToText(settings)
        self.voice = TextToSpeech(settings)
        self.wyoming: Listener | None = None
        self.speech = [engine for engine in (self.ears.engine, self.voice.engine) if engine is not None]
        self.state = Overview(
            self.models,
            self.scheduler,
            self.cards,
            speech=self.speech,
            warmer=self.warmer,
            replicas=replicas,
            version=self.version,
        )
        if replicas is not None:
            replicas.on_change = self._note_change
        self.metrics = Metrics(self.version)
        self.metrics.observe_state(self.state)

    def _warmer(self) -> Warmer:
        return Warmer(self.models, self.sessions, self.scheduler, HeadFile(self.settings.state_folder))

    def _chat_completion(self) -> ChatCompletion:
        settings = self.settings
        return ChatCompletion(
            self.models,
            self.sessions,
            self.scheduler,
            priorities=Priorities(settings.background_markers),
            cancellations=self.cancellations,
            warmer=self.warmer,
            stable_prefix=_stable_prefix(settings),
            log_prompts=settings.log_prompts,
            pictures=PictureBounds(settings.max_images, settings.max_image_bytes, settings.max_image_pixels),
        )

    def paused_reason(self, engine: Engine) -> str:
        """Why the engine gets no new work now: a card that it works on is too hot."""
        return self.cards.pause_reason(engine.devices) if self.cards is not None else ""

    def finished(self, record: RequestRecord) -> None:
        log_request(record)
        self.metrics.observe(record)

    async def start(self) -> None:
        self.settings.state_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.settings.log_folder.mkdir(parents=True, exist_ok=True)
        if self.cards is not None:
            self.cards.start(self.settings.npu_poll_interval)
        await self.models.start()
        if self.warmer is not None:
            self.warmer.start()
        for engine in self.speech:
            engine.start()
        if self.settings.wyoming_port and self.speech:
            # Imported when needed: only Home Assistant speaks this protocol.
            wyoming = import_module("qwen_service.audio.wyoming").WyomingServer
            server: Listener = wyoming(self.settings, self.ears, self.voice, self.finished, self.version)
            await server.start()
            self.wyoming = server

    def _note_change(self) -> None:
        self.scheduler.dispatch()
        if self.warmer is not None:
            self.warmer.nudge()

    async def stop(self) -> None:
        """Stop the models first: even if another part hangs, the vendor's programs are stopped politely. Errors are logged."""
        first = {"models": self.models.stop}
        if self.warmer is not None:  # stopped beside the models: a prefill may end only with its program
            first["warming"] = self.warmer.stop
        await _stopped(first)
        others = {"pulls": self.pulls.stop, "embeddings": self.embeddings.stop}
        others |= {f"speech {number}": engine.stop for number, engine in enumerate(self.speech)}
        if self.wyoming is not None:
            others["wyoming"] = self.wyoming.stop
        if self.cards is not None:
            others["cards"] = self.cards.stop
        await _stopped(others)


async def _stopped(parts: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
    """Stop the parts together. The error of one is logged, and does not keep the others from stopping."""
    results = await asyncio.gather(*(stop() for stop in parts.values()), return_exceptions=True)
    for name, result in zip(parts, results, strict=True):
        if isinstance(result, Exception):
            log.error("%s could not be stopped: %s", name, result, exc_info=result)


def _stable_prefix(settings: Settings) -> StablePrefix | None:
    if settings.stable_prefix == "off":
        return None
    file = LineFile(settings.state_folder)
    return StablePrefix(file.read(), on_learned=file.write)


def _version() -> str:
    try:
        return version("qwen-service")
    except PackageNotFoundError:  # runs from a checkout
        return "0.1.0"
