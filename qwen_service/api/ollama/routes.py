"""Ollama's routes for text and vectors: thin, from body to request to reply."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qwen_service.api.json_body import Handler, JsonRoute
from qwen_service.api.ollama.errors import OLLAMA
from qwen_service.api.ollama.model_routes import add_model_routes
from qwen_service.api.ollama.request import chat_request, generate_request, ignored_options, seconds_of
from qwen_service.api.ollama.response import ChatReply, GenerateReply, Reply, now
from qwen_service.api.ollama.wire import ChatBody, EmbedBody, EmbeddingsBody, GenerateBody, GenerationFields
from qwen_service.api.reply import ReplyHeaders
from qwen_service.api.streaming import StreamReply, WholeReply, merged
from qwen_service.chat import Event
from qwen_service.service import Service

REFUSAL: dict[int | str, dict[str, Any]] = {"default": {"description": 'An error: {"error": "text"}'}}
# For /docs: the streamed form of the answer.
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}


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
