"""Silence before and within a stream is filled with what the official packages pass over."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from starlette.types import Receive, Scope, Send

from qwen_service.api.anthropic.errors import ANTHROPIC
from qwen_service.api.anthropic.response import MessageEvents
from qwen_service.api.openai.errors import OPENAI
from qwen_service.api.openai.responses.response import ResponseEvents
from qwen_service.api.openai.responses.wire import ResponsesBody
from qwen_service.api.reply import ReplyHeaders
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
    times = {"status_within": SILENCE / 10, "headers_after": SILENCE / 10, "ping_every": SILENCE / 10}
    if path == "/v1/messages":
        messages = MessageEvents("msg_1", ReplyHeaders())
        return StreamReply(slow(), messages.encode, ANTHROPIC, dict, **times)
    responses = ResponseEvents("resp_1", ResponsesBody.model_validate({"input": "Hi"}), ReplyHeaders())
    return StreamReply(slow(), responses.encode, replace(OPENAI, error_chunk=responses.failed), dict, **times)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await reply_of(scope["path"])(scope, receive, send)


def client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost")


@pytest.mark.parametrize(
    ("path", "ping", "first"),
    [("/v1/messages", ANTHROPIC.ping, b"message_start"), ("/v1/responses", OPENAI.ping, b"response.created")],
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
