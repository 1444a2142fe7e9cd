"""Anthropic's routes: thin, from body to request to reply."""

import uuid

from fastapi import APIRouter
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from qwen_service.api.anthropic.errors import ANTHROPIC
from qwen_service.api.anthropic.request import chat_request, message_request, skipped_tools
from qwen_service.api.anthropic.response import MessageEvents, message, model_list
from qwen_service.api.anthropic.wire import ERRORS, STREAM, CountTokensBody, MessagesBody
from qwen_service.api.json_body import JsonRoute
from qwen_service.api.middleware import dialect_of
from qwen_service.api.reply import ReplyHeaders, json_response
from qwen_service.api.streaming import StreamReply, WholeReply, merged
from qwen_service.service import Service


class AnthropicsOnly(JsonRoute):
    """A route that matches requests of Anthropic's clients only; others fall through to the next route with this path."""

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
            return StreamReply(events, MessageEvents(request.id, headers).encode, ANTHROPIC, headers)

        return WholeReply(lambda: message(request.id, events, headers), headers)

    @router.post("/v1/messages/count_tokens", summary="How many tokens a conversation has")
    async def count_tokens(body: CountTokensBody) -> Response:
        request = chat_request(body, "", max_messages=most)

        async def whole() -> dict[str, int]:
            return {"input_tokens": await service.chat.count(request)}

        return WholeReply(whole)

    @router.get("/v1/models", include_in_schema=False)
    async def models() -> Response:
        return json_response(model_list(service.models))

    return router
