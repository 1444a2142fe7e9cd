"""Ollama's routes about models, and the routes that we answer with 501."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from qwen_service.api.ollama.errors import OLLAMA
from qwen_service.api.ollama.models import CREATED, copied, created, running, show, tags
from qwen_service.api.ollama.response import pull_lines
from qwen_service.api.ollama.wire import CopyBody, CreateBody, DeleteBody, PullBody, ShowBody
from qwen_service.api.reply import json_response
from qwen_service.api.streaming import StreamReply, WholeReply
from qwen_service.errors import InvalidRequest, NotOffered
from qwen_service.install.progress import Progress
from qwen_service.install.removal import remove_model
from qwen_service.service import Service

API_VERSION = "0.12.11"  # version of the Ollama API that we follow; clients refuse servers that are too old

_NOT_OFFERED = {
    "/api/push": "This service uploads nothing.",
    "/api/blobs/{digest}": "This service takes no files: put a GGUF file into models_dir, or pull a model.",
}


def add_model_routes(router: APIRouter, service: Service) -> None:
    routes = ModelRoutes(service)
    router.head("/api/version", include_in_schema=False)(routes.version)
    router.get("/api/version", summary="Version of the API")(routes.version)
    router.head("/api/tags", include_in_schema=False)(routes.list_models)
    router.get("/api/tags", summary="Installed models")(routes.list_models)
    router.get("/api/ps", summary="Loaded models")(routes.list_running)
    router.post("/api/show", summary="What a model is and can")(routes.show_model)
    router.post("/api/pull", summary="Install a model of the catalog")(routes.pull)
    router.delete("/api/delete", summary="Remove a model from the disk (administration)")(routes.delete)
    router.post("/api/create", summary="Make a persona, a model with its own system message (administration)")(
        routes.create
    )
    router.post("/api/copy", summary="Give a model or a persona a second name (administration)")(routes.copy)
    for path, text in _NOT_OFFERED.items():
        router.add_api_route(path, _refusal(text), methods=["GET", "POST"], include_in_schema=False)


class ModelRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._models = service.models
        self._catalog = service.catalog

    async def version(self) -> Response:
        return json_response({"version": API_VERSION})

    async def list_models(self) -> Response:
        return json_response(tags(self._models))

    async def list_running(self) -> Response:
        return json_response(running(self._models))

    async def show_model(self, body: ShowBody) -> Response:
        return json_response(show(self._models, body.model))

    async def pull(self, body: PullBody) -> Response:
        reports = self._service.pulls.follow(self._catalog.find(body.model))
        if body.stream is False:
            return WholeReply(lambda: _success(reports))
        return StreamReply(reports, pull_lines, OLLAMA, dict)

    async def delete(self, body: DeleteBody) -> Response:
        if (persona := self._models.persona(body.model)) is not None:
            await asyncio.to_thread(self._models.personas.remove, persona)
            return Response()
        model = self._catalog.find_installed(body.model)
        if self._models.served(model) is not None:
            raise InvalidRequest(f"{model.name} is loaded: load another model before you delete it.", param="model")
        await asyncio.to_thread(remove_model, self._catalog, model)
        return Response()

    async def create(self, body: CreateBody) -> Response:
        await asyncio.to_thread(self._models.personas.put, created(self._models, self._catalog, body))
        if body.stream is False:
            return json_response({"status": "success"})
        return Response(CREATED, media_type=OLLAMA.media_type)

    async def copy(self, body: CopyBody) -> Response:
        await asyncio.to_thread(self._models.personas.put, copied(self._models, self._catalog, body))
        return Response()


async def _success(reports: AsyncGenerator[str | Progress, None]) -> dict[str, Any]:
    async with aclosing(reports):
        async for _ in reports:
            pass
    return {"status": "success"}


def _refusal(text: str) -> Any:
    async def refuse() -> Response:
        raise NotOffered(text)

    return refuse
