"""The routes of the Responses API: thin, from body to request to reply."""

import uuid
from dataclasses import replace

from fastapi import APIRouter
from starlette.responses import Response

from qwen_service.api.json_body import JsonRoute
from qwen_service.api.openai.errors import OPENAI, error_response
from qwen_service.api.openai.responses.request import chat_request, skipped_tools
from qwen_service.api.openai.responses.response import ResponseEvents
from qwen_service.api.openai.responses.wire import STREAM, ResponsesBody
from qwen_service.api.openai.wire_reply import ERRORS
from qwen_service.api.reply import ReplyHeaders
from qwen_service.api.streaming import StreamReply, WholeReply, merged
from qwen_service.errors import InvalidRequest
from qwen_service.service import Service


def responses_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], route_class=JsonRoute, responses=ERRORS)

    @router.post("/v1/responses", summary="Answer a conversation, in the Responses API", responses=STREAM)
    async def create(body: ResponsesBody) -> Response:
        request = chat_request(body, f"resp_{uuid.uuid4().hex}", max_messages=service.settings.max_messages)
        headers = ReplyHeaders(skipped_tools(body))
        reply = ResponseEvents(request.id, body, headers)
        events = merged([service.chat.stream(request)])
        if body.stream:
            return StreamReply(events, reply.encode, replace(OPENAI, error_chunk=reply.failed), headers)

        return WholeReply(lambda: reply.whole(events), headers)

    @router.post("/v1/responses/input_tokens", summary="How many tokens a conversation has, in the Responses API")
    async def input_tokens(body: ResponsesBody) -> Response:
        request = chat_request(body, "", max_messages=service.settings.max_messages)

        async def whole() -> dict[str, object]:
            return {"object": "response.input_tokens", "input_tokens": await service.chat.count(request)}

        return WholeReply(whole)

    stored = "/v1/responses/{response_id:path}"
    router.add_api_route(stored, _not_stored, methods=["GET", "DELETE"], include_in_schema=False)
    return router


async def _not_stored() -> Response:
    text = "No response is stored here, whatever `store` said: keep the answer of POST /v1/responses."
    answer = error_response(InvalidRequest(text, param="response_id"))
    answer.status_code = 404
    return answer
