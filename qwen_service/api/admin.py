"""Routes of administration. Only users of this machine reach them (request_checks.AdminOnly)."""

from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from qwen_service.api.json_body import JsonRoute
from qwen_service.api.keys import ApiKeys
from qwen_service.api.reply import Dialect, json_response, sse
from qwen_service.api.streaming import StreamReply, WholeReply
from qwen_service.config import ConfigError
from qwen_service.engines.served import ServedModel
from qwen_service.engines.switch import Step, steps_of
from qwen_service.errors import InvalidRequest
from qwen_service.operation import logs
from qwen_service.service import Service
from qwen_service.settings import Settings

APPLIED_AT_ONCE = ("log_level",)  # and the content of api_keys_file


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


def admin_router(routes: "Administration") -> APIRouter:
    refusal: dict[int | str, dict[str, Any]] = {"default": {"description": "Why the request was refused"}}
    router = APIRouter(tags=["administration"], route_class=JsonRoute, responses=refusal)
    router.post("/v1/models/load", summary="Switch to another installed model")(routes.load)
    router.post("/admin/reload", summary="Read the configuration again, or restart the model")(routes.reload)
    router.post("/admin/shutdown", status_code=202, summary="Let running replies end, then stop")(routes.shutdown)
    router.get("/admin/requests", summary="Ids of the generations that run or wait")(routes.requests)
    router.post("/admin/cancel/{request_id}", summary="End a request by its X-Request-Id")(routes.cancel)
    router.post("/admin/log-level", summary="Set the log level until the next start")(routes.log_level)
    return router


class Administration:
    """`read_settings` reads the configuration again, `shut_down` stops the service; `dialect` is that of its streams."""

    def __init__(
        self,
        service: Service,
        api_keys: ApiKeys | None,
        dialect: Dialect,
        *,
        read_settings: Callable[[], Settings],
        shut_down: Callable[[], None],
    ) -> None:
        self._service = service
        self._api_keys = api_keys
        self._dialect = dialect
        self._read_settings = read_settings
        self._shut_down = shut_down

    async def load(self, body: LoadBody) -> Response:
        if body.stream:
            return StreamReply(steps_of(partial(self._service.models.load, body.model)), _events, self._dialect, dict)
        return _loaded(self._service.models.load(body.model))

    async def reload(self, body: ReloadBody) -> Response:
        if body.what == "model":
            return _loaded(self._service.models.reload())
        try:
            fresh = self._read_settings()
        except ConfigError as error:
            raise InvalidRequest(f"The configuration stays as it is. {error.message}") from None
        return json_response(self._reload_configuration(fresh))

    async def shutdown(self) -> Response:
        self._shut_down()
        return json_response({"status": "shutting down"}, 202)

    async def requests(self) -> Response:
        return json_response({"requests": self._service.cancellations.request_ids})

    async def cancel(self, request_id: str) -> Response:
        return json_response({"cancelled": self._service.cancellations.cancel(request_id)})

    async def log_level(self, body: LogLevelBody) -> Response:
        logs.set_level(body.level)
        return json_response({"level": body.level})

    def _reload_configuration(self, fresh: Settings) -> dict[str, Any]:
        """Apply the settings that can change while requests run, and name the others. Raises KeyFileError and changes nothing."""
        running, wanted = self._service.settings.model_dump(), fresh.model_dump()
        changed = sorted(key for key in wanted if wanted[key] != running[key])
        if self._api_keys is not None and fresh.api_keys_file is not None:
            self._api_keys.replace(ApiKeys.from_file(fresh.api_keys_file))
        logs.set_level(fresh.log_level)
        return {
            "applied": [key for key in changed if key in APPLIED_AT_ONCE],
            "needs_restart": [key for key in changed if key not in APPLIED_AT_ONCE],
            "api_keys": "read again" if self._api_keys is not None else None,
        }


def _loaded(switch: Coroutine[Any, Any, ServedModel]) -> Response:
    """Load a model. If the client leaves while the switch still waits for running work, the switch is dropped."""

    async def whole() -> dict[str, Any]:
        model = await switch
        return {"model": model.name, "state": model.phase}

    return WholeReply(whole)


async def _events(steps: AsyncGenerator[Step, None]) -> AsyncGenerator[bytes, None]:
    async for step in steps:
        yield sse(asdict(step))
