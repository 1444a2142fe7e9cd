"""The composition root: what the service is made of, in which order it starts and stops.

`app` serves `uvicorn qwen_service.app:app`; `create_app(settings)` is for everybody else.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qwen_service.api.admin import admin_router
from qwen_service.api.anthropic.errors import error_response as anthropic_error_response
from qwen_service.api.anthropic.routes import anthropic_router
from qwen_service.api.asgi import Scope
from qwen_service.api.body_fault import first_fault
from qwen_service.api.health import health_router, metrics_router
from qwen_service.api.keys import ApiKeys
from qwen_service.api.middleware import dialect_of
from qwen_service.api.middleware_stack import middleware_stack
from qwen_service.api.ollama.errors import error_response as ollama_error_response
from qwen_service.api.ollama.routes import ollama_router
from qwen_service.api.openai.audio import audio_router
from qwen_service.api.openai.errors import error_response
from qwen_service.api.openai.responses.routes import responses_router
from qwen_service.api.openai.routes import openai_router
from qwen_service.api.pages import ChatPage
from qwen_service.api.targets import allowed_methods, base_url_hint
from qwen_service.audio.speech_to_text import SpeechToText
from qwen_service.audio.text_to_speech import TextToSpeech
from qwen_service.card.monitor import card_monitor
from qwen_service.config import load_settings
from qwen_service.engine import Engine
from qwen_service.engines.embeddings import Embeddings
from qwen_service.engines.loaders import Loaders, loaders_for
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.waiting_room import WaitingRoom
from qwen_service.errors import InvalidRequest, ServiceError
from qwen_service.install.pulls import Pulls
from qwen_service.models.catalog import Catalog
from qwen_service.models.machine import Machine
from qwen_service.models.personas import Personas
from qwen_service.operation.logs import log_request
from qwen_service.operation.metrics import Metrics
from qwen_service.operation.overview import Overview
from qwen_service.operation.systemd_notify import SystemdNotifier
from qwen_service.operation.systemd_report import report
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

    def __init__(self, settings: Settings, *, loaders: Loaders = loaders_for, machine: Machine | None = None) -> None:
        self.settings = settings
        self.page = ChatPage()
        self.api_keys = ApiKeys.from_file(settings.api_keys_file) if settings.api_keys_file else None
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
        )
        self.cards = card_monitor(settings, machine, on_change=self._note_change)
        self.cancellations = Cancellations()
        self.sessions = SessionManager(overflow=settings.context_overflow, default_max_tokens=settings.max_tokens)
        self.warmer = (
            Warmer(self.models, self.sessions, self.scheduler, HeadFile(settings.state_folder))
            if settings.warm == "on"
            else None
        )
        self.chat = ChatCompletion(
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
            version=_version(),
        )
        self.metrics = Metrics(_version())
        self.metrics.observe_state(self.state)

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
            # Imported when needed: who has no Home Assistant does without.
            wyoming = import_module("qwen_service.audio.wyoming").WyomingServer
            server: Listener = wyoming(self.settings, self.ears, self.voice, self.finished, _version())
            await server.start()
            self.wyoming = server

    def _note_change(self) -> None:
        self.scheduler.dispatch()
        if self.warmer is not None:
            self.warmer.nudge()

    async def stop(self) -> None:
        """The models first: whatever else hangs, the vendor's programs get their polite end. Errors are logged."""
        first = {"models": self.models.stop}
        if self.warmer is not None:  # what it has begun ends with the program only
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
    """Stop them together. What goes wrong with one is logged, and keeps no other from its end."""
    results = await asyncio.gather(*(stop() for stop in parts.values()), return_exceptions=True)
    for name, result in zip(parts, results, strict=True):
        if isinstance(result, Exception):
            log.error("%s could not be stopped: %s", name, result, exc_info=result)


def _stable_prefix(settings: Settings) -> StablePrefix | None:
    if settings.stable_prefix == "off":
        return None
    file = LineFile(settings.state_folder)
    return StablePrefix(file.read(), on_learned=file.write)


def _terminate() -> None:
    """What `systemctl stop` does: uvicorn lets running replies end."""
    signal.raise_signal(signal.SIGTERM)


def create_app(
    settings: Settings | None = None,
    *,
    loaders: Loaders = loaders_for,
    machine: Machine | None = None,
    read_settings: Callable[[], Settings] = load_settings,
    shut_down: Callable[[], None] = _terminate,
) -> FastAPI:
    """`read_settings` and `shut_down` are what /admin/reload and /admin/shutdown call; `machine` is this one."""
    service = Service(settings or load_settings(), loaders=loaders, machine=machine)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        systemd = SystemdNotifier()
        reporting = asyncio.create_task(report(systemd, service.models))
        try:
            yield
        finally:
            reporting.cancel()
            systemd.stopping()
            await service.stop()

    app = FastAPI(
        title="qwen-service",
        version=_version(),
        docs_url=None,  # FastAPI's own pages come from a CDN: blank without internet. web_routes has ours
        redoc_url=None,
        lifespan=lifespan,
        middleware=middleware_stack(
            service.settings,
            service.finished,
            _refusal,
            api_keys=service.api_keys,
            public_paths=service.page.public_paths,
        ),
    )
    app.state.begin_stop = service.pulls.abandon  # for who serves the app: what need not be waited for on the way down
    app.include_router(anthropic_router(service))  # first: one of its routes is OpenAI's, too
    app.include_router(openai_router(service))
    app.include_router(responses_router(service))
    app.include_router(audio_router(service))
    app.include_router(ollama_router(service))
    app.include_router(health_router(service.state))
    app.include_router(metrics_router(service.metrics))
    app.include_router(admin_router(service, read_settings, shut_down))
    app.router.routes.extend(service.page.routes())

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def root(request: Request) -> Response:
        return service.page.for_browser(request) or PlainTextResponse("Ollama is running", headers={"Vary": "Accept"})

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        return _refusal(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return _refusal(request.scope, _explained(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        methods = allowed_methods(app.routes, request.scope["path"]) if error.status_code == 405 else []
        response = _refusal(request.scope, InvalidRequest(_in_words(request, error, methods)))
        response.status_code = error.status_code
        response.headers.update({**(error.headers or {}), **({"Allow": ", ".join(methods)} if methods else {})})
        return response

    return app


def _refusal(scope: Scope, error: ServiceError) -> Response:
    """In the shape of the dialect that the path belongs to."""
    shapes = {"ollama": ollama_error_response, "anthropic": anthropic_error_response}
    return shapes.get(dialect_of(scope), error_response)(error)


def _in_words(request: Request, error: HTTPException, methods: Sequence[str]) -> str:
    path = request.scope["path"][:200]
    if error.status_code == 404:
        hint = base_url_hint(request.app.routes, request.method, path) or " /docs lists the routes of this service."
        return f"There is no {path} here.{hint}"
    if error.status_code == 405:
        return f"{path} takes {' or '.join(methods)}, not {request.method}. /docs lists the routes of this service."
    return f"{error.detail}: {error.__cause__}" if error.__cause__ else str(error.detail)  # a body that is not JSON


def _explained(error: RequestValidationError) -> InvalidRequest:
    fault = first_fault(error)
    if fault.kind == "json_invalid":
        return InvalidRequest(fault.message)
    if not fault.field:
        return InvalidRequest("the body must be a JSON object, sent with Content-Type: application/json")
    return InvalidRequest(f"{fault.field}: {fault.message}", param=fault.field)


def _version() -> str:
    try:
        return version("qwen-service")
    except PackageNotFoundError:  # runs from a checkout
        return "0.1.0"


def __getattr__(name: str) -> FastAPI:
    """`app`, made when it is asked for: importing this module has no effects."""
    if name == "app":
        return create_app()
    raise AttributeError(name)
