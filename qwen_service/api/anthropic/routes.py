"""Anthropic's routes: thin, from body to request to reply."""

import uuid
from typing import Any, Protocol

import orjson
from fastapi import APIRouter
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from qwen_service.api.anthropic.errors import error_chunk, error_response
from qwen_service.api.anthropic.request import chat_request, message_request, skipped_tools
from qwen_service.api.anthropic.response import PING, MessageEvents, message, model_list
from qwen_service.api.anthropic.wire import ERRORS, STREAM, CountTokensBody, MessagesBody
from qwen_service.api.json_body import JsonRoute
from qwen_service.api.middleware import dialect_of
from qwen_service.api.reply_headers import ReplyHeaders
from qwen_service.api.streaming import StreamReply, WholeReply, merged
from qwen_service.engines.manager import ModelManager
from qwen_service.pipeline.chat_completion import ChatCompletion
from qwen_service.settings import Settings


class Service(Protocol):
    """What the routes need of the composition root."""

    settings: Settings
    models: ModelManager
    chat: ChatCompletion


class AnthropicsOnly(JsonRoute):
    """A route for requests of Anthropic's clients; those of others go on to the next route with this path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and dialect_of(scope) != "anthropic":
            return Match.NONE, {}
        return super().matches(scope)


def anthropic_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["Anthropic"], route_class=AnthropicsOnly, responses=ERRORS)
    most = service.settings.max_messages

    @router.post("/v1/messages", summary="Answer a conversation", responses=STREAM)
    async def messages(body: MessagesBody) -> Response:
        request = message_request(body, f"msg_{uuid.uuid4().hex}", max_messages=most)
        headers = ReplyHeaders(skipped_tools(body))
        events = merged([service.chat.stream(request)])
        if body.stream:
            return StreamReply(
                events,
                MessageEvents(request.id, headers).encode,
                media_type="text/event-stream; charset=utf-8",
                headers=headers,
                error_response=error_response,
                error_chunk=error_chunk,
                ping=PING,
            )

        async def whole() -> Response:
            reply = await message(request.id, events, headers)
            return _json(reply, headers())

        return WholeReply(whole, error_response)

    @router.post("/v1/messages/count_tokens", summary="How many tokens a conversation has")
    async def count_tokens(body: CountTokensBody) -> Response:
        request = chat_request(body, "", max_messages=most)

        async def whole() -> Response:
            return _json({"input_tokens": await service.chat.count(request)})

        return WholeReply(whole, error_response)

    @router.get("/v1/models", include_in_schema=False)
    async def models() -> Response:
        return _json(model_list(service.models))

    return router


def _json(content: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), headers=headers, media_type="application/json")
