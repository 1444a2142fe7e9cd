"""Ollama's routes about models, and what we do not offer of its API."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from qwen_service.api.ollama.errors import error_line, error_response
from qwen_service.api.ollama.models import find, not_found, running, show, tags
from qwen_service.api.ollama.personas import CREATED, copied, created
from qwen_service.api.ollama.response import NDJSON, pull_lines
from qwen_service.api.ollama.wire import CopyBody, CreateBody, DeleteBody, PullBody, ShowBody
from qwen_service.api.streaming import StreamReply, WholeReply
from qwen_service.engines.embeddings import Embeddings
from qwen_service.engines.manager import ModelManager
from qwen_service.errors import InvalidRequest, NotOffered, UnknownModel
from qwen_service.install.progress import Progress
from qwen_service.install.pulls import Pulls
from qwen_service.install.removal import remove_model
from qwen_service.models.catalog import Catalog, unaliased
from qwen_service.models.spec import ModelSpec
from qwen_service.pipeline.chat_completion import ChatCompletion
from qwen_service.settings import Settings

API_VERSION = "0.12.11"  # of the Ollama API that this dialect follows; clients refuse servers that are too old

_NOT_OFFERED = {
    "/api/push": "This service uploads nothing.",
    "/api/blobs/{digest}": "This service takes no files: put a GGUF file into models_dir, or pull a model.",
}


class Service(Protocol):
    """What the routes need of the composition root."""

    settings: Settings
    models: ModelManager
    chat: ChatCompletion
    catalog: Catalog
    embeddings: Embeddings
    pulls: Pulls


def add_model_routes(router: APIRouter, service: Service) -> None:
    @router.head("/api/version", include_in_schema=False)
    @router.get("/api/version", summary="Version of the API")
    async def version() -> Response:
        return _json({"version": API_VERSION})

    @router.head("/api/tags", include_in_schema=False)
    @router.get("/api/tags", summary="Installed models")
    async def list_models() -> Response:
        return _json(tags(service.models))

    @router.get("/api/ps", summary="Loaded models")
    async def list_running() -> Response:
        return _json(running(service.models))

    @router.post("/api/show", summary="What a model is and can")
    async def show_model(body: ShowBody) -> Response:
        return _json(show(service.models, unaliased(body.model, service.settings.model_aliases)))

    @router.post("/api/pull", summary="Install a model of the catalog")
    async def pull(body: PullBody) -> Response:
        reports = service.pulls.follow(_known(service.catalog, body.model))
        if body.stream is False:
            return WholeReply(lambda: _success(reports), error_response)
        return StreamReply(
            reports,
            pull_lines,
            media_type=NDJSON,
            headers=dict,
            error_response=error_response,
            error_chunk=error_line,
        )

    @router.delete("/api/delete", summary="Remove a model from the disk (administration)")
    async def delete(body: DeleteBody) -> Response:
        if (persona := service.models.persona(body.model)) is not None:
            await asyncio.to_thread(service.models.personas.remove, persona)
            return Response()
        model = find(service.models, body.model)
        if service.models.served(model) is not None:
            raise InvalidRequest(f"{model.name} is loaded; load another model first", param="model")
        await asyncio.to_thread(remove_model, service.catalog, model)
        return Response()

    @router.post("/api/create", summary="Make a persona: a model with a system message of its own (administration)")
    async def create(body: CreateBody) -> Response:
        await asyncio.to_thread(service.models.personas.put, created(service.models, service.catalog, body))
        return _json({"status": "success"}) if body.stream is False else Response(CREATED, media_type=NDJSON)

    @router.post("/api/copy", summary="Give a model or a persona a second name (administration)")
    async def copy(body: CopyBody) -> Response:
        await asyncio.to_thread(service.models.personas.put, copied(service.models, service.catalog, body))
        return Response()

    for path, text in _NOT_OFFERED.items():
        router.add_api_route(path, _refusal(text), methods=["GET", "POST"], include_in_schema=False)


async def _success(reports: AsyncGenerator[str | Progress, None]) -> Response:
    async with aclosing(reports):
        async for _ in reports:
            pass
    return _json({"status": "success"})


def _known(catalog: Catalog, name: str) -> ModelSpec:
    try:
        return catalog.find(name)
    except UnknownModel:
        raise not_found(name, "see `qwen-service list --all` for what can be pulled") from None


def _refusal(text: str) -> Any:
    async def refuse() -> Response:
        raise NotOffered(text)

    return refuse


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
