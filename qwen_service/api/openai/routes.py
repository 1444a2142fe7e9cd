"""OpenAI's routes: thin, from body to request to reply."""

import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Protocol

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from qwen_service.api.json_body import JsonRoute
from qwen_service.api.openai.embeddings import embeddings_object, inputs
from qwen_service.api.openai.errors import error_chunk, error_response
from qwen_service.api.openai.models import model_list, one_model
from qwen_service.api.openai.request import chat_request, chat_request_of_completion, choices, prompt_requests
from qwen_service.api.openai.response import PING, ChatChunks, chat_completion, collect
from qwen_service.api.openai.text_completion import TextCompletion
from qwen_service.api.openai.wire import ChatCompletionBody, CompletionBody, EmbeddingsBody, SamplingFields
from qwen_service.api.openai.wire_reply import (
    ERRORS,
    ChatCompletionChunk,
    Completion,
    ModelEntry,
    ModelList,
    answers,
)
from qwen_service.api.openai.wire_reply import ChatCompletion as ChatCompletionReply
from qwen_service.api.reply_headers import ReplyHeaders
from qwen_service.api.streaming import Events, StreamReply, WholeReply, merged
from qwen_service.chat import ChatRequest
from qwen_service.engines.embeddings import Embeddings
from qwen_service.engines.manager import ModelManager
from qwen_service.models.catalog import unaliased
from qwen_service.pipeline.chat_completion import ChatCompletion
from qwen_service.settings import Settings


class Service(Protocol):
    """What the routes need of the composition root."""

    settings: Settings
    models: ModelManager
    chat: ChatCompletion
    embeddings: Embeddings


def openai_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], route_class=JsonRoute, responses=ERRORS)
    settings = service.settings

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        responses=answers(ChatCompletionReply, chunk=ChatCompletionChunk),
    )
    async def chat_completions(body: ChatCompletionBody) -> Response:
        return answer_chat(chat_request(body, _new_id("chatcmpl"), max_messages=settings.max_messages), body)

    @router.post(
        "/v1/completions",
        summary="Continue a prompt, or answer messages like a chat",
        responses=answers(Completion, chunk=Completion),
    )
    async def completions(body: CompletionBody) -> Response:
        if body.messages is not None:
            request = chat_request_of_completion(body, _new_id("chatcmpl"), max_messages=settings.max_messages)
            return answer_chat(request, body)
        return answer_prompts(prompt_requests(body, _new_id("cmpl"), max_choices=settings.max_choices), body)

    @router.post("/v1/embeddings", summary="Vectors of texts, where a model for embeddings is installed")
    async def embeddings(body: EmbeddingsBody) -> Response:
        async def whole() -> Response:
            embedded = await service.embeddings.embed(body.model, inputs(body), dimensions=body.dimensions)
            return _json(embeddings_object(embedded, body))

        return WholeReply(whole, error_response)

    @router.get("/v1/models/", include_in_schema=False)
    @router.get("/v1/models", summary="Installed models", responses=answers(ModelList))
    async def models() -> Response:
        return _json(model_list(service.models))

    @router.get("/v1/models/{name:path}", summary="One installed model", responses=answers(ModelEntry))
    async def model(name: str) -> Response:
        return _json(one_model(service.models, unaliased(name, settings.model_aliases)))

    def answer_chat(request: ChatRequest, body: ChatCompletionBody | CompletionBody) -> Response:
        requests = choices(request, body.n or 1, settings.max_choices)
        headers = ReplyHeaders()
        events = merged([service.chat.stream(request) for request in requests])
        logprobs = request.sampling.top_logprobs is not None
        if body.stream:
            chunks = ChatChunks(
                request.id, len(requests), include_usage=_wants_usage(body), logprobs=logprobs, headers=headers
            )
            return _stream(events, chunks.encode, headers)

        async def whole() -> Response:
            replies, usage = await collect(events, len(requests), headers)
            model = headers.started.model if headers.started else ""
            return _json(chat_completion(request.id, model, replies, usage, logprobs=logprobs), headers())

        return WholeReply(whole, error_response)

    def answer_prompts(requests: Sequence[ChatRequest], body: CompletionBody) -> Response:
        headers = ReplyHeaders()
        completion = TextCompletion(
            requests[0].id,
            [str(request.prompt) if body.echo and isinstance(request.prompt, str) else "" for request in requests],
            per_prompt=body.n or 1,
            logprobs=requests[0].sampling.top_logprobs is not None,
            include_usage=_wants_usage(body),
            headers=headers,
        )
        events = merged([service.chat.stream(request) for request in requests])
        if body.stream:
            return _stream(events, completion.chunks, headers)

        async def whole() -> Response:
            return _json(await completion.whole(events), headers())

        return WholeReply(whole, error_response)

    return router


def _stream(events: Events, encode: Callable[[Events], AsyncGenerator[bytes, None]], headers: ReplyHeaders) -> Response:
    return StreamReply(
        events,
        encode,
        media_type="text/event-stream; charset=utf-8",
        headers=headers,
        error_response=error_response,
        error_chunk=error_chunk,
        ping=PING,
    )


def _json(content: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), headers=headers, media_type="application/json")


def _new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def _wants_usage(body: SamplingFields) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage is True
