"""Administration: only for this machine's users (request_checks.AdminOnly sees to that before a route is reached)."""

from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from qwen_service.api.json_body import JsonRoute
from qwen_service.api.keys import ApiKeys
from qwen_service.api.openai.errors import error_chunk, error_response
from qwen_service.api.streaming import StreamReply, WholeReply
from qwen_service.config import ConfigError
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.served import ServedModel
from qwen_service.engines.switch import switch_events, switch_steps
from qwen_service.errors import InvalidRequest
from qwen_service.operation import logs
from qwen_service.pipeline.cancellation import Cancellations
from qwen_service.settings import Settings

APPLIED_AT_ONCE = ("log_level",)  # and the content of api_keys_file


class Service(Protocol):
    """What the routes need of the composition root."""

    settings: Settings
    models: ModelManager
    cancellations: Cancellations
    api_keys: ApiKeys | None


class _Body(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, body: Any) -> Any:
        unknown = next((key for key in body if key not in cls.model_fields), None) if isinstance(body, dict) else None
        if unknown is not None:
            raise ValueError(f"unknown field {str(unknown)[:64]!r}; known: {', '.join(cls.model_fields)}")
        return body


class LoadBody(_Body):
    model: str = Field(min_length=1, max_length=200)
    stream: bool = Field(False, description="Answer with server-sent events: one for each step.")


class ReloadBody(_Body):
    what: Literal["configuration", "model"] = "configuration"


class LogLevelBody(_Body):
    level: Literal["debug", "info", "warning", "error"]


def admin_router(service: Service, read_settings: Callable[[], Settings], shut_down: Callable[[], None]) -> APIRouter:
    router = APIRouter(
        tags=["administration"], route_class=JsonRoute, responses={"default": {"description": "Why not"}}
    )

    @router.post("/v1/models/load", summary="Switch to another installed model")
    async def load(body: LoadBody) -> Response:
        if body.stream:
            return _steps(service.models, body.model)
        return _loaded(service.models.load(body.model))

    @router.post("/admin/reload", summary="Read the configuration again, or restart the model")
    async def reload(body: ReloadBody) -> Response:
        if body.what == "model":
            return _loaded(service.models.reload())
        try:
            fresh = read_settings()
        except ConfigError as error:
            raise InvalidRequest(f"Nothing was changed. {error.message}") from None
        return _json(_reload_configuration(service, fresh))

    @router.post("/admin/shutdown", status_code=202, summary="Let running replies end, then stop")
    async def shutdown() -> Response:
        shut_down()
        return _json({"status": "shutting down"}, 202)

    @router.get("/admin/requests", summary="Ids of the generations that run or wait")
    async def requests() -> Response:
        return _json({"requests": service.cancellations.request_ids})

    @router.post("/admin/cancel/{request_id}", summary="End a request by its X-Request-Id")
    async def cancel(request_id: str) -> Response:
        return _json({"cancelled": service.cancellations.cancel(request_id)})

    @router.post("/admin/log-level", summary="Change how much is logged, until the next start")
    async def log_level(body: LogLevelBody) -> Response:
        logs.set_level(body.level)
        return _json({"level": body.level})

    return router


def _reload_configuration(service: Service, fresh: Settings) -> dict[str, Any]:
    """Apply what can be changed while requests run; name the rest. Raises KeyFileError and changes nothing."""
    running, wanted = service.settings.model_dump(), fresh.model_dump()
    changed = sorted(key for key in wanted if wanted[key] != running[key])
    if service.api_keys is not None and fresh.api_keys_file is not None:
        service.api_keys.replace(ApiKeys.from_file(fresh.api_keys_file))
    logs.set_level(fresh.log_level)
    return {
        "applied": [key for key in changed if key in APPLIED_AT_ONCE],
        "needs_restart": [key for key in changed if key not in APPLIED_AT_ONCE],
        "api_keys": "read again" if service.api_keys is not None else None,
    }


def _loaded(switch: Coroutine[Any, Any, ServedModel]) -> Response:
    """A client that leaves while the switch waits for running work ends it."""

    async def whole() -> Response:
        model = await switch
        return _json({"model": model.name, "state": model.phase})

    return WholeReply(whole, error_response)


def _steps(models: ModelManager, name: str) -> Response:
    return StreamReply(
        switch_steps(models, name),
        switch_events,
        media_type="text/event-stream",
        headers=dict,
        error_response=error_response,
        error_chunk=error_chunk,
        ping=b": ping\n\n",
    )


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
