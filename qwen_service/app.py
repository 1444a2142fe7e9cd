"""The HTTP side put together: what requests pass, the routes, and how errors are answered.

`app` serves `uvicorn qwen_service.app:app`; `create_app(settings)` is for everybody else.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from qwen_service.api.admin import Administration, admin_router
from qwen_service.api.anthropic.errors import ANTHROPIC
from qwen_service.api.anthropic.routes import anthropic_router
from qwen_service.api.asgi import Scope
from qwen_service.api.health import health_router, metrics_router
from qwen_service.api.json_body import explain
from qwen_service.api.keys import ApiKeys
from qwen_service.api.middleware import dialect_of
from qwen_service.api.middleware_stack import middleware_stack
from qwen_service.api.ollama.errors import OLLAMA
from qwen_service.api.ollama.routes import ollama_router
from qwen_service.api.openai.audio import audio_router
from qwen_service.api.openai.errors import OPENAI
from qwen_service.api.openai.responses.routes import responses_router
from qwen_service.api.openai.routes import openai_router
from qwen_service.api.pages import ChatPage
from qwen_service.api.targets import allowed_methods, base_url_hint
from qwen_service.config import load_settings
from qwen_service.engines.loaders import Loaders, loaders_for
from qwen_service.errors import InvalidRequest, ServiceError
from qwen_service.models.machine import Machine
from qwen_service.operation.state import Replicas
from qwen_service.operation.systemd import SystemdNotifier, report
from qwen_service.service import Service
from qwen_service.settings import Settings

DIALECTS = {"anthropic": ANTHROPIC, "ollama": OLLAMA}  # all other paths answer in OpenAI's


def _terminate() -> None:
    """Stop as `systemctl stop` does: uvicorn lets running replies end."""
    signal.raise_signal(signal.SIGTERM)


def create_app(
    settings: Settings | None = None,
    *,
    loaders: Loaders = loaders_for,
    machine: Machine | None = None,
    read_settings: Callable[[], Settings] = load_settings,
    shut_down: Callable[[], None] = _terminate,
    replicas: Replicas | None = None,
) -> FastAPI:
    """`read_settings` and `shut_down` are what /admin/reload and /admin/shutdown call; `machine` is this one."""
    settings = settings or load_settings()
    page = ChatPage()
    api_keys = ApiKeys.from_file(settings.api_keys_file) if settings.api_keys_file else None
    service = Service(settings, loaders=loaders, machine=machine, replicas=replicas)
    administration = Administration(service, api_keys, OPENAI, read_settings=read_settings, shut_down=shut_down)
    app = FastAPI(
        title="qwen-service",
        version=service.version,
        docs_url=None,  # FastAPI's own pages come from a CDN: blank without internet. ChatPage has ours
        redoc_url=None,
        lifespan=_lifespan(service),
        middleware=middleware_stack(
            settings, service.finished, _refusal, api_keys=api_keys, public_paths=page.public_paths
        ),
        exception_handlers={
            ServiceError: _service_error,
            RequestValidationError: _validation_error,
            HTTPException: _http_error,
        },
    )
    app.state.begin_stop = service.pulls.abandon  # called by the server before it waits for running requests
    for router in _routers(service, administration):
        app.include_router(router)
    app.add_api_route("/", page.root, methods=["GET", "HEAD"], include_in_schema=False)
    app.router.routes.extend(page.routes())
    return app


def _routers(service: Service, administration: Administration) -> list[APIRouter]:
    return [
        anthropic_router(service),  # first: one of its routes is OpenAI's, too
        openai_router(service),
        responses_router(service),
        audio_router(service),
        ollama_router(service),
        health_router(service.state),
        metrics_router(service.metrics),
        admin_router(administration),
    ]


def _lifespan(service: Service) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
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

    return lifespan


def _refusal(scope: Scope, error: ServiceError) -> Response:
    """Answer in the shape of the dialect that the path belongs to."""
    return DIALECTS.get(dialect_of(scope), OPENAI).error_response(error)


async def _service_error(request: Request, error: ServiceError) -> Response:
    return _refusal(request.scope, error)


async def _validation_error(request: Request, error: RequestValidationError) -> Response:
    return _refusal(request.scope, explain(error))


async def _http_error(request: Request, error: HTTPException) -> Response:
    methods = allowed_methods(request.app.routes, request.scope["path"]) if error.status_code == 405 else []
    response = _refusal(request.scope, InvalidRequest(_in_words(request, error, methods)))
    response.status_code = error.status_code
    response.headers.update({**(error.headers or {}), **({"Allow": ", ".join(methods)} if methods else {})})
    return response


def _in_words(request: Request, error: HTTPException, methods: Sequence[str]) -> str:
    path = request.scope["path"][:200]
    if error.status_code == 404:
        hint = base_url_hint(request.app.routes, request.method, path) or " /docs lists the routes of this service."
        return f"There is no {path} here.{hint}"
    if error.status_code == 405:
        return f"{path} takes {' or '.join(methods)}, not {request.method}. /docs lists the routes of this service."
    return f"{error.detail}: {error.__cause__}" if error.__cause__ else str(error.detail)  # a body that is not JSON


def __getattr__(name: str) -> FastAPI:
    """`app`, made when it is asked for: importing this module has no effects."""
    if name == "app":
        return create_app()
    raise AttributeError(name)
