"""OpenAI's routes: thin, from body to request to reply."""

import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from qwen_service.api.json_body import JsonRoute
from qwen_service.api.openai.embeddings import embeddings_object, inputs
from qwen_service.api.openai.errors import OPENAI
from qwen_service.api.openai.models import model_list, one_model
from qwen_service.api.openai.request import chat_request, choices, prompt_requests
from qwen_service.api.openai.response import ChatChunks, chat_completion, collect
from qwen_service.api.openai.text_completion import TextCompletion
from qwen_service.api.openai.wire import ChatCompletionBody, CompletionBody, EmbeddingsBody, SamplingFields
from qwen_service.api.openai.wire_reply import ERRORS, ChatCompletionChunk, Completion, ModelEntry, ModelList, answers
from qwen_service.api.openai.wire_reply import ChatCompletion as ChatCompletionReply
from qwen_service.api.reply import ReplyHeaders, json_response
from qwen_service.api.streaming import StreamReply, WholeReply, merged
from qwen_service.chat import ChatRequest
from qwen_service.service import Service


def openai_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], route_class=JsonRoute, responses=ERRORS)
    routes = OpenAIRoutes(service)
    chat, text = answers(ChatCompletionReply, chunk=ChatCompletionChunk), answers(Completion, chunk=Completion)
    router.post("/v1/chat/completions", summary="Answer a conversation", responses=chat)(routes.chat_completions)
    continuing = "Continue a prompt, or answer messages like a chat"
    router.post("/v1/completions", summary=continuing, responses=text)(routes.completions)
    router.post("/v1/embeddings", summary="Vectors of texts, by an installed model for embeddings")(routes.embeddings)
    router.get("/v1/models", summary="Installed models", responses=answers(ModelList))(routes.models)
    router.get("/v1/models/", include_in_schema=False)(routes.models)
    router.get("/v1/models/{name:path}", summary="One installed model", responses=answers(ModelEntry))(routes.model)
    return router


class OpenAIRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings

    async def chat_completions(self, body: ChatCompletionBody) -> Response:
        return self._answer_chat(body)

    async def completions(self, body: CompletionBody) -> Response:
        if body.messages is not None:
            return self._answer_chat(body)
        requests = prompt_requests(body, _new_id("cmpl"), max_choices=self._settings.max_choices)
        return self._answer_prompts(requests, body)

    async def embeddings(self, body: EmbeddingsBody) -> Response:
        async def whole() -> dict[str, Any]:
            embedded = await self._service.embeddings.embed(body.model, inputs(body), dimensions=body.dimensions)
            return embeddings_object(embedded, body)

        return WholeReply(whole)

    async def models(self) -> Response:
        return json_response(model_list(self._service.models))

    async def model(self, name: str) -> Response:
        return json_response(one_model(self._service.models, name))

    def _answer_chat(self, body: ChatCompletionBody | CompletionBody) -> Response:
        request = chat_request(body, _new_id("chatcmpl"), max_messages=self._settings.max_messages)
        requests = choices(request, body.n or 1, self._settings.max_choices)
        headers = ReplyHeaders()
        events = merged([self._service.chat.stream(request) for request in requests])
        logprobs = request.sampling.top_logprobs is not None
        if body.stream:
            usage = _wants_usage(body)
            chunks = ChatChunks(request.id, len(requests), include_usage=usage, logprobs=logprobs, headers=headers)
            return StreamReply(events, chunks.encode, OPENAI, headers)

        async def whole() -> dict[str, Any]:
            replies, usage = await collect(events, len(requests), headers)
            model = headers.started.model if headers.started else ""
            return chat_completion(request.id, model, replies, usage, logprobs=logprobs)

        return WholeReply(whole, headers)

    def _answer_prompts(self, requests: Sequence[ChatRequest], body: CompletionBody) -> Response:
        headers = ReplyHeaders()
        completion = TextCompletion(
            requests[0].id,
            [str(request.prompt) if body.echo and isinstance(request.prompt, str) else "" for request in requests],
            per_prompt=body.n or 1,
            logprobs=requests[0].sampling.top_logprobs is not None,
            include_usage=_wants_usage(body),
            headers=headers,
        )
        events = merged([self._service.chat.stream(request) for request in requests])
        if body.stream:
            return StreamReply(events, completion.chunks, OPENAI, headers)
        return WholeReply(lambda: completion.whole(events), headers)


def _new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def _wants_usage(body: SamplingFields) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage is True
