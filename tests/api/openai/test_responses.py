"""The Responses API of a whole service with a scripted engine: every answer and event must be of OpenAI's own types."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from qwen_service.api.openai.responses.response import ResponseEvents
from qwen_service.api.openai.responses.wire import ResponsesBody
from qwen_service.api.reply import ReplyHeaders
from qwen_service.errors import Died, InvalidRequest, PromptTooLong, QueueTimeout, ServiceError
from tests.case_service import Script, scripted_service

TYPED: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def http(tmp_path: Path, script: Script) -> AsyncIterator[httpx.AsyncClient]:
    async with scripted_service(tmp_path, script, {}) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


async def answer(http: httpx.AsyncClient, **body: Any) -> Response:
    """The whole answer, which must be of OpenAI's type and say the same as the stream's last event."""
    body = {"model": "tiny", "input": "Hi"} | body
    whole = await http.post("/v1/responses", json=body)
    assert whole.status_code == 200, whole.text
    last = (await events(http, **body))[-1]["response"]
    assert shape(whole.json() | {"output_text": None}) == shape(last | {"output_text": None})
    assert whole.json()["output_text"] == Response.model_validate(whole.json()).output_text
    return Response.model_validate(whole.json())


def shape(response: Any) -> Any:
    """Without what differs from answer to answer."""
    if isinstance(response, dict):
        hidden = ("id", "call_id", "created_at", "completed_at")
        return {key: shape(value) for key, value in response.items() if key not in hidden}
    return [shape(item) for item in response] if isinstance(response, list) else response


async def events(http: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    """Each of a type that the `openai` package knows, all numbered."""
    streamed = await http.post("/v1/responses", json={"model": "tiny", "input": "Hi", "stream": True} | body)
    assert streamed.status_code == 200, streamed.text
    told = [block.split("\n", 1) for block in streamed.text.split("\n\n") if block]
    found: list[dict[str, Any]] = [json.loads(data.removeprefix("data: ")) for _, data in told]
    assert [name for name, _ in told] == [f"event: {event['type']}" for event in found]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    for event in found:
        TYPED.validate_python(event)
    added = [event for event in found if event["type"] == "response.output_item.added"]
    places = {event["item"]["id"]: event["output_index"] for event in added}
    assert list(places.values()) == list(range(len(added)))
    assert all(places[event["item_id"]] == event["output_index"] for event in found if "item_id" in event)
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in found]


MESSAGE = ["output_item.added", "content_part.added", *["output_text.delta"] * 2]
MESSAGE += ["output_text.done", "content_part.done", "output_item.done"]


async def test_a_text(http: httpx.AsyncClient) -> None:
    response = await answer(http, metadata={"task": "7"}, store=True, instructions="Be brief.", user="me")
    assert (response.status, response.output_text, response.model) == ("completed", "Hello there", "tiny")
    assert (response.metadata, response.instructions, response.user) == ({"task": "7"}, "Be brief.", "me")
    assert response.model_extra is not None
    assert response.model_extra["store"] is False
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert response.usage.total_tokens == response.usage.input_tokens + 2
    found = await events(http)
    assert kinds(found) == ["created", "in_progress", *MESSAGE, "completed"]
    assert "".join(event["delta"] for event in found if "delta" in event) == "Hello there"


async def test_thoughts_are_an_item_of_their_own(http: httpx.AsyncClient, script: Script) -> None:
    script.play(["<think>\nHm, so.\n</think>\n\nHello there"])
    response = await answer(http, reasoning={"effort": "low"})
    thoughts, message = response.output
    assert thoughts.type == "reasoning"
    assert [part.text for part in thoughts.summary] == ["Hm, so."]
    assert (thoughts.encrypted_content, message.type, response.output_text) == (None, "message", "Hello there")
    found = await events(http, reasoning={"effort": "low"})
    assert kinds(found)[2:4] == ["output_item.added", "reasoning_summary_part.added"]
    assert kinds(found)[-len(MESSAGE) - 4 : -len(MESSAGE) - 1] == [
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    deltas = [event["delta"] for event in found if event["type"] == "response.reasoning_summary_text.delta"]
    assert "".join(deltas) == "Hm, so."


async def test_calls_are_items_and_come_back_as_the_models_own(http: httpx.AsyncClient, script: Script) -> None:
    script.play([f"I look. {CALL}{CALL}"])
    response = await answer(http, tools=[TOOL])
    message, first, second = response.output
    assert (message.type, first.type, second.type) == ("message", "function_call", "function_call")
    assert first.type == "function_call"
    assert second.type == "function_call"
    assert (first.name, json.loads(first.arguments)) == ("weather", {"city": "Paris"})
    assert first.call_id != second.call_id
    found = await events(http, tools=[TOOL])
    call = kinds(found)[-9:-5]
    expected = [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert call == kinds(found)[-5:-1] == expected
    items = [item.model_dump(exclude_none=True) for item in response.output]
    outputs = [{"type": "function_call_output", "call_id": c.call_id, "output": "sunny"} for c in (first, second)]
    await answer(http, input=[{"role": "user", "content": "Hi"}, *items, *outputs], tools=[TOOL])
    assert [message.role for message in script.prompts[-1].request.messages] == ["user", "assistant", "tool", "tool"]


async def test_the_token_limit_leaves_the_reply_incomplete(http: httpx.AsyncClient) -> None:
    response = await answer(http, max_output_tokens=1)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    (message,) = response.output
    assert message.type == "message"
    assert message.status == "incomplete"
    assert kinds(await events(http, max_output_tokens=1))[-1] == "incomplete"


async def test_a_schema_is_enforced(http: httpx.AsyncClient, script: Script) -> None:
    script.play(['{"a": 1}'])
    text = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    response = await answer(http, text=text)
    assert json.loads(response.output_text) == {"a": 1}
    assert script.samplings[-1].json_schema is not None
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"


async def test_logprobs(http: httpx.AsyncClient) -> None:
    response = await answer(http, top_logprobs=2)
    (message,) = response.output
    assert message.type == "message"
    assert message.content[0].type == "output_text"
    logprobs = message.content[0].logprobs or []
    assert [(entry.token, len(entry.top_logprobs)) for entry in logprobs] == [("Hello ", 2), ("there", 2)]


async def test_truncation_disabled_refuses_what_is_too_long(http: httpx.AsyncClient) -> None:
    talk = [
        {"role": role, "content": text}
        for role, text in (("user", "x" * 550), ("assistant", "Hello."), ("user", "How are you?"))
    ]
    await answer(http, input=talk, truncation="auto")
    refusal = await http.post("/v1/responses", json={"model": "tiny", "input": talk, "truncation": "disabled"})
    assert refusal.status_code == 400
    assert refusal.json()["error"]["code"] == "context_length_exceeded"


async def test_many_skipped_tools_do_not_make_a_header_that_no_client_takes(http: httpx.AsyncClient) -> None:
    tools = [{"type": "custom", "name": f"{number:0>100}"} for number in range(100)]
    answered = await http.post("/v1/responses", json={"model": "tiny", "input": "Hi", "tools": tools})
    named = answered.headers["x-ignored-parameters"]
    assert answered.status_code == 200
    assert len(named) < 1100
    assert named.endswith(", and 91 more")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_no_response_is_stored(http: httpx.AsyncClient, method: str) -> None:
    gone = await http.request(method, "/v1/responses/resp_1")
    assert gone.status_code == 404
    assert "No response is stored here" in gone.json()["error"]["message"]


async def test_a_stream_that_breaks_ends_in_failed(tmp_path: Path) -> None:
    async with (
        scripted_service(tmp_path, Script(dies_after=1), {}) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http,
    ):
        found = await events(http)
        whole = await http.post("/v1/responses", json={"input": "Hi"})
    assert kinds(found)[-1] == "failed"
    assert found[-1]["response"]["status"] == "failed"
    assert found[-1]["response"]["error"]["code"] == "server_error"
    assert whole.status_code == 502


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (PromptTooLong("too long"), "context_length_exceeded", "too long"),
        (InvalidRequest("no"), "invalid_prompt", "no"),
        (QueueTimeout("full.", retry_after=6.2), "rate_limit_exceeded", "full. Please try again in 7s."),
        (Died("out of memory"), "server_error", "out of memory"),
    ],
)
def test_failures_have_codes_and_a_beginning(error: ServiceError, code: str, words: str) -> None:
    reply = ResponseEvents("resp_1", ResponsesBody.model_validate({"input": "Hi"}), ReplyHeaders())
    created, failed = (block.splitlines() for block in reply.failed(error).decode().strip().split("\n\n"))
    assert (created[0], failed[0]) == ("event: response.created", "event: response.failed")
    response = json.loads(failed[1].removeprefix("data: "))["response"]
    assert response["error"] == {"code": code, "message": words}
