"""Ollama's routes for generating text: thin, from body to request to reply."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from qwen_service.chat import ChatRequest, Event
from qwen_service.dialects.ollama.context import continued
from qwen_service.dialects.ollama.embed_routes import add_embed_routes
from qwen_service.dialects.ollama.errors import error_line, error_response
from qwen_service.dialects.ollama.keep_alive import seconds_of
from qwen_service.dialects.ollama.model_routes import Service, add_model_routes
from qwen_service.dialects.ollama.models import capabilities, find, not_found
from qwen_service.dialects.ollama.request import chat_request, generate_request, ignored_options
from qwen_service.dialects.ollama.response import NDJSON, ChatReply, GenerateReply, Reply, now
from qwen_service.dialects.ollama.route import OllamaRoute
from qwen_service.dialects.ollama.wire import ChatBody, GenerateBody, GenerationFields
from qwen_service.dialects.reply_headers import ReplyHeaders
from qwen_service.dialects.streaming import StreamReply, WholeReply, merged
from qwen_service.errors import UnknownModel, Unsupported

# Beside the JSON of an answer in one piece.
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}


def ollama_router(service: Service) -> APIRouter:
    refusal: dict[int | str, dict[str, Any]] = {"default": {"description": 'An error: {"error": "text"}'}}
    router = APIRouter(tags=["Ollama"], route_class=OllamaRoute, responses=refusal)
    add_model_routes(router, service)
    add_embed_routes(router, service)

    @router.post("/api/chat", summary="Answer a conversation", responses=STREAM)
    async def chat(body: ChatBody) -> Response:
        headers = ReplyHeaders(ignored_options(body))
        reply = ChatReply(body.model, headers, logprobs=bool(body.logprobs))
        if not body.messages:
            return load_or_unload(body, reply)
        request = chat_request(body, _new_id(), max_messages=service.settings.max_messages)
        return answer(body, events(request), reply, headers)

    @router.post("/api/generate", summary="Answer or continue a prompt", responses=STREAM)
    async def generate(body: GenerateBody) -> Response:
        headers = ReplyHeaders(ignored_options(body))
        reply = GenerateReply(body.model, headers, logprobs=bool(body.logprobs), context=not body.raw)
        request = generate_request(body, _new_id())
        if not body.prompt and not body.suffix:
            return load_or_unload(body, reply)
        return answer(body, events(request, body.context), reply, headers)

    def answer(
        body: GenerationFields, generated: AsyncGenerator[Event, None], reply: Reply, headers: ReplyHeaders
    ) -> Response:
        if body.keep_alive is not None:
            seconds_of(body.keep_alive)  # honoured where a model can be unloaded; a wrong one is refused everywhere
        if body.stream is False:
            return WholeReply(lambda: whole(generated, reply, headers), error_response)
        return StreamReply(
            merged([generated]),
            reply.lines,
            media_type=NDJSON,
            headers=headers,
            error_response=error_response,
            error_chunk=error_line,
        )

    async def whole(generated: AsyncGenerator[Event, None], reply: Reply, headers: ReplyHeaders) -> Response:
        return _json(await reply.whole(merged([generated])), headers())

    async def events(request: ChatRequest, context: list[int] | None = None) -> AsyncGenerator[Event, None]:
        try:
            if request.thinking or context:
                request = await prepared(request, context)
            async with aclosing(service.chat.stream(request)) as stream:
                async for event in stream:
                    yield event
        except UnknownModel as error:
            names = ", ".join(model.name for model in service.models.installed())
            raise not_found(request.model or "", names) from error

    async def prepared(request: ChatRequest, context: list[int] | None) -> ChatRequest:
        model = await service.models.obtain(request.model)
        engine = await model.ready(at_most=service.settings.queue_timeout, waiters=service.settings.queue_size)
        if request.thinking and "thinking" not in capabilities(model.spec, engine):
            raise Unsupported(f'"{request.model}" does not support thinking', param="think")
        return await continued(engine.text, request, context) if context else request

    def load_or_unload(body: GenerationFields, reply: Reply) -> Response:
        async def compute() -> Response:
            reason = "unload" if await unloaded(body) else "load"
            done = {"done": True, "done_reason": reason}
            return _json({"model": body.model, "created_at": now(), **reply.part(), **done})

        return WholeReply(compute, error_response)

    async def unloaded(body: GenerationFields) -> bool:
        """A loaded model stays loaded: loading one takes minutes on a card."""
        model = find(service.models, body.model)
        if body.keep_alive is not None and seconds_of(body.keep_alive) == 0:
            served = service.models.served(model)
            return served is None or served.engine is None
        served = await service.models.obtain(body.model)
        await served.ready(at_most=service.settings.queue_timeout, waiters=service.settings.queue_size)
        return False

    return router


def _json(content: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), headers=headers, media_type="application/json")


def _new_id() -> str:
    return f"ollama-{uuid.uuid4().hex}"
