"""Ollama's routes for text, vectors and models: thin, from body to request to reply. Some routes about models answer 501."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qwen_service.api.json_body import Handler, JsonRoute
from qwen_service.api.ollama.errors import OLLAMA
from qwen_service.api.ollama.models import CREATED, copied, created, running, show, tags
from qwen_service.api.ollama.request import chat_request, generate_request, ignored_options, seconds_of
from qwen_service.api.ollama.response import ChatReply, GenerateReply, Reply, now, pull_lines
from qwen_service.api.ollama.wire import (
    ChatBody,
    CopyBody,
    CreateBody,
    DeleteBody,
    EmbedBody,
    EmbeddingsBody,
    GenerateBody,
    GenerationFields,
    PullBody,
    ShowBody,
)
from qwen_service.api.reply import ReplyHeaders, json_response
from qwen_service.api.streaming import StreamReply, WholeReply, merged
from qwen_service.chat import Event
from qwen_service.errors import InvalidRequest, NotOffered
from qwen_service.install.progress import Progress
from qwen_service.install.removal import remove_model
from qwen_service.service import Service

REFUSAL: dict[int | str, dict[str, Any]] = {"default": {"description": 'An error: {"error": "text"}'}}
# For /docs: the streamed form of the answer.
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}
API_VERSION = "0.12.11"  # version of the Ollama API that we follow; clients refuse servers that are too old

_NOT_OFFERED = {
    "/api/push": "This service uploads nothing.",
    "/api/blobs/{digest}": "This service takes no files: put a GGUF file into models_dir, or pull a model.",
}


def ollama_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["Ollama"], route_class=OllamaRoute, responses=REFUSAL)
    add_model_routes(router, service)
    routes = OllamaRoutes(service)
    router.post("/api/chat", summary="Answer a conversation", responses=STREAM)(routes.chat)
    router.post("/api/generate", summary="Answer or continue a prompt", responses=STREAM)(routes.generate)
    router.post("/api/embed", summary="Vectors of texts, by an installed model for embeddings")(routes.embed)
    router.post("/api/embeddings", summary="The vector of one text (older form)")(routes.embeddings)
    return router


class OllamaRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings

    async def chat(self, body: ChatBody) -> Response:
        headers = ReplyHeaders(ignored_options(body))
        reply = ChatReply(body.model, headers, logprobs=bool(body.logprobs))
        if not body.messages:
            return self._load_or_unload(body, reply)
        request = chat_request(body, _new_id(), max_messages=self._settings.max_messages)
        return _answer(body, self._service.chat.stream(request), reply, headers)

    async def generate(self, body: GenerateBody) -> Response:
        headers = ReplyHeaders(ignored_options(body))
        reply = GenerateReply(body.model, headers, logprobs=bool(body.logprobs), context=not body.raw)
        request = generate_request(body, _new_id())
        if not body.prompt and not body.suffix:
            return self._load_or_unload(body, reply)
        return _answer(body, self._service.chat.stream(request), reply, headers)

    async def embed(self, body: EmbedBody) -> Response:
        async def whole() -> dict[str, Any]:
            began = time.monotonic()
            inputs = ([body.input] if body.input else []) if isinstance(body.input, str) else body.input
            embedded = await self._service.embeddings.embed(
                body.model, inputs, truncate=body.truncate is not False, dimensions=body.dimensions
            )
            took = round((time.monotonic() - began) * 1e9)
            figures = {"total_duration": took, "load_duration": 0, "prompt_eval_count": embedded.tokens}
            return {"model": body.model, "embeddings": embedded.vectors} | figures

        return WholeReply(whole)

    async def embeddings(self, body: EmbeddingsBody) -> Response:
        async def whole() -> dict[str, Any]:
            texts = [body.prompt] if body.prompt else []  # clients load the model by asking for the vector of nothing
            embedded = await self._service.embeddings.embed(body.model, texts, truncate=True)
            return {"embedding": embedded.vectors[0] if embedded.vectors else []}

        return WholeReply(whole)

    def _load_or_unload(self, body: GenerationFields, reply: Reply) -> Response:
        async def whole() -> dict[str, Any]:
            reason = "unload" if await self._is_unloaded(body) else "load"
            done = {"done": True, "done_reason": reason}
            return {"model": body.model, "created_at": now(), **reply.part(), **done}

        return WholeReply(whole)

    async def _is_unloaded(self, body: GenerationFields) -> bool:
        """Whether keep_alive 0 unloads the model. A card's model stays loaded unless unload_when_idle is set: loading takes minutes."""
        keep_alive = None if body.keep_alive is None else seconds_of(body.keep_alive)
        if keep_alive == 0:
            served = self._service.models.served(self._service.models.find(body.model))
            return served is None or await served.rest.unload_now() or served.engine is None
        model = await self._service.models.obtain(body.model)
        with model.in_use():
            model.rest.keep(keep_alive)
            room = self._service.models.room
            await model.ready(room, room.arrive())
        return False


def _answer(
    body: GenerationFields, events: AsyncGenerator[Event, None], reply: Reply, headers: ReplyHeaders
) -> Response:
    if body.stream is False:
        return WholeReply(lambda: reply.whole(merged([events])), headers)
    return StreamReply(merged([events]), reply.lines, OLLAMA, headers)


def _new_id() -> str:
    return f"ollama-{uuid.uuid4().hex}"


class OllamaRoute(JsonRoute):
    """Reads the body as JSON whatever its content type is, as Ollama does: `curl -d` sends a form's content type."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            others = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
            scope = {**request.scope, "headers": [*others, (b"content-type", b"application/json")]}
            return await handler(Request(scope, request.receive))

        return handle


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
