"""Silence before and within a stream is filled with what the official packages pass over."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from starlette.types import Receive, Scope, Send

from qwen_service.api.anthropic import errors as anthropic_errors
from qwen_service.api.anthropic.response import PING, MessageEvents
from qwen_service.api.openai import errors as openai_errors
from qwen_service.api.openai.response import PING as COMMENT
from qwen_service.api.openai.responses.response import ResponseEvents
from qwen_service.api.openai.responses.wire import ResponsesBody
from qwen_service.api.reply_headers import ReplyHeaders
from qwen_service.api.streaming import StreamReply
from qwen_service.chat import Event, Finished, Started, TextDelta, Usage

SILENCE = 0.3  # seconds; a ping is due every tenth of it
HELLO: Any = [{"role": "user", "content": "Hi"}]


async def slow() -> AsyncGenerator[tuple[int, Event], None]:
    await asyncio.sleep(SILENCE)
    yield 0, Started("tiny")
    yield 0, TextDelta("Hello")
    await asyncio.sleep(SILENCE)
    yield 0, Finished("stop", Usage(1, 1))


def reply_of(path: str) -> StreamReply[Any]:
    common: dict[str, Any] = {"media_type": "text/event-stream", "headers": dict}
    common |= {"status_within": SILENCE / 10, "headers_after": SILENCE / 10, "ping_every": SILENCE / 10}
    if path == "/v1/messages":
        messages = MessageEvents("msg_1", ReplyHeaders())
        common |= {"error_response": anthropic_errors.error_response, "error_chunk": anthropic_errors.error_chunk}
        return StreamReply(slow(), messages.encode, ping=PING, **common)
    responses = ResponseEvents("resp_1", ResponsesBody.model_validate({"input": "Hi"}), ReplyHeaders())
    common |= {"error_response": openai_errors.error_response, "error_chunk": responses.failed}
    return StreamReply(slow(), responses.encode, ping=COMMENT, **common)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await reply_of(scope["path"])(scope, receive, send)


def client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost")


@pytest.mark.parametrize(
    ("path", "ping", "first"),
    [("/v1/messages", PING, b"message_start"), ("/v1/responses", COMMENT, b"response.created")],
)
async def test_both_silences_are_filled(path: str, ping: bytes, first: bytes) -> None:
    async with client() as http:
        before, _, after = (await http.post(path)).content.partition(b"event: " + first)
    assert before.count(ping) >= 1
    assert before == ping * before.count(ping)
    assert ping in after


async def test_the_anthropic_package_passes_over_pings() -> None:
    async with anthropic.AsyncAnthropic(base_url="http://localhost", api_key="none", http_client=client()) as packaged:
        made = packaged.messages.stream(model="tiny", max_tokens=9, messages=HELLO)
        async with made as stream:
            message = await stream.get_final_message()
    assert message.content[0].to_dict()["text"] == "Hello"


async def test_the_openai_package_passes_over_comments() -> None:
    async with openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=client()) as packaged:
        made = packaged.responses.stream(model="tiny", input="Hi")
        async with made as stream:
            response = await stream.get_final_response()
    assert response.output_text == "Hello"
