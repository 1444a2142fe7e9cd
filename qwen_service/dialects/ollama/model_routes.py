"""Ollama's routes about models, and what we do not offer of its API."""

from typing import Any, Protocol

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from qwen_service.chat_completion import ChatCompletion
from qwen_service.config import Settings
from qwen_service.dialects.ollama.models import running, show, tags
from qwen_service.dialects.ollama.wire import ShowBody
from qwen_service.errors import NotOffered
from qwen_service.model_manager import ModelManager

API_VERSION = "0.12.11"  # of the Ollama API that this dialect follows; clients refuse servers that are too old

_NOT_OFFERED = {
    "/api/create": "Models are not made here: put a GGUF file or an axllm folder into models_dir, or pull one.",
    "/api/copy": "Models are not copied here; model_aliases gives a model further names.",
    "/api/push": "This service uploads nothing.",
    "/api/blobs/{digest}": "This service takes no files: put a GGUF file into models_dir, or pull a model.",
    "/api/embed": "This service serves chat models, no embeddings.",
    "/api/embeddings": "This service serves chat models, no embeddings.",
}


class Service(Protocol):
    """What the routes need of the composition root."""

    settings: Settings
    models: ModelManager
    chat: ChatCompletion


def add_model_routes(router: APIRouter, service: Service) -> None:
    @router.get("/api/version", summary="Version of the API")
    async def version() -> Response:
        return _json({"version": API_VERSION})

    @router.get("/api/tags", summary="Installed models")
    async def list_models() -> Response:
        return _json(tags(service.models))

    @router.get("/api/ps", summary="Loaded models")
    async def list_running() -> Response:
        return _json(running(service.models))

    @router.post("/api/show", summary="What a model is and can")
    async def show_model(body: ShowBody) -> Response:
        return _json(show(service.models, body.model))

    for path, text in _NOT_OFFERED.items():
        router.add_api_route(path, _refusal(text), methods=["POST", "HEAD"], include_in_schema=False)


def _refusal(text: str) -> Any:
    async def refuse() -> Response:
        raise NotOffered(text)

    return refuse


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
