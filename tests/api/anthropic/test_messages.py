"""Anthropic's dialect against a whole service with a scripted engine."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from qwen_service.api.anthropic.request import BILLING_HEADER, message_request, skipped_tools
from qwen_service.api.anthropic.wire import MessagesBody
from qwen_service.api.keys import new_key
from qwen_service.chat import ChatRequest, Message, NamedTool, ToolCall
from qwen_service.errors import InvalidRequest, RequestTooLarge, Unsupported
from tests.case_service import Script, scripted_service

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
TOOL: dict[str, Any] = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'


def translated(**body: Any) -> ChatRequest:
    return message_request(MessagesBody.model_validate({"messages": HELLO} | body), "msg_1", max_messages=50)


def said(*messages: dict[str, Any], **body: Any) -> tuple[Message, ...]:
    return translated(messages=list(messages), **body).messages


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_a_text_and_a_list_with_that_text_are_the_same(role: str) -> None:
    block = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    assert said({"role": role, "content": [block]}) == said({"role": role, "content": "Hi"})
    assert translated(system=[block]).messages == translated(system="Hi").messages


def test_the_billing_header_is_dropped() -> None:
    blocks = [{"type": "text", "text": f"{BILLING_HEADER} cch=1;"}, {"type": "text", "text": "Be brief."}]
    assert translated(system=blocks).messages == translated(system="Be brief.").messages
    assert translated(system=blocks[:1]).messages == translated().messages


def test_a_tool_turn_goes_both_ways() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Zürich"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]}
    thought = {"type": "thinking", "thinking": "Look.", "signature": ""}
    secret = {"type": "redacted_thinking", "data": "x"}
    assistant = {"role": "assistant", "content": [thought, secret, {"type": "text", "text": "So:"}, use]}
    user = {"role": "user", "content": [result, {"type": "text", "text": "And?"}]}
    assert said(assistant, user) == (
        Message("assistant", "So:", "Look.", (ToolCall("t1", "weather", '{"city": "Zürich"}'),)),
        Message("tool", "rain", tool_call_id="t1"),
        Message("user", "And?"),
    )
    failed = {"role": "user", "content": [{**result, "content": "no network", "is_error": True}]}
    assert said(failed) == (Message("tool", "Error: no network", tool_call_id="t1"),)


@pytest.mark.parametrize(
    ("choice", "meant"),
    [("auto", "auto"), ("any", "required"), ("none", "none"), ("tool", NamedTool("weather"))],
)
def test_tool_choice(choice: str, meant: Any) -> None:
    given = {"type": choice, "disable_parallel_tool_use": True} | ({"name": "weather"} if choice == "tool" else {})
    request = translated(tools=[TOOL], tool_choice=given)
    assert (request.tool_choice, request.parallel_tool_calls) == (meant, False)


@pytest.mark.parametrize(("kind", "meant"), [("enabled", True), ("disabled", False), ("adaptive", None)])
def test_thinking(kind: str, meant: bool | None) -> None:
    assert translated(thinking={"type": kind, "budget_tokens": 1024}).thinking is meant


def test_a_last_message_of_the_assistant_is_gone_on_with() -> None:
    assert translated(messages=[*HELLO, {"role": "assistant", "content": "The"}]).continues
    assert not translated().continues


def test_tools_of_anthropics_own_are_skipped() -> None:
    body = MessagesBody.model_validate(
        {"messages": HELLO, "tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]}
    )
    assert [tool.name for tool in message_request(body, "", max_messages=9).tools] == ["weather"]
    assert skipped_tools(body) == ("tools.web_search",)


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, Unsupported, "messages[0].content[0].source"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x/"}}]}]}, Unsupported, "messages[0].content[0].source"),
        ({"messages": [{"role": "system", "content": [{"type": "image", "source": {}}]}]}, Unsupported, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, InvalidRequest, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, InvalidRequest, "messages[0].content[0].tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, InvalidRequest, "messages[0].content[0]"),
        ({"tool_choice": {"type": "any"}}, InvalidRequest, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, InvalidRequest, "tool_choice.name"),
        ({"messages": HELLO * 51}, RequestTooLarge, "messages"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field(body: dict[str, Any], kind: type[InvalidRequest], param: str) -> None:
    with pytest.raises(kind) as caught:
        translated(**body)
    assert caught.value.param == param


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def http(tmp_path: Path, script: Script) -> AsyncIterator[httpx.AsyncClient]:
    settings = {"model_aliases": {"claude-*haiku*": "tiny"}}
    async with scripted_service(tmp_path, script, settings) as app, client_of(app) as client:
        yield client


async def ask(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/messages", json={"model": "tiny", "max_tokens": 32000, "messages": HELLO} | body)


def events_of(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in answer.text.split("\n\n")[:-1]:
        event, data = block.split("\n")
        found.append((event.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_a_whole_reply(http: httpx.AsyncClient, script: Script) -> None:
    answer = await ask(http)
    body = answer.json()
    size = len(script.prompts[0].token_ids)
    assert body["content"] == [{"type": "text", "text": "Hello there"}]
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "tiny")
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"]["input_tokens"] + body["usage"]["cache_read_input_tokens"] == size
    assert (body["usage"]["cache_read_input_tokens"], body["usage"]["output_tokens"]) == (2, 2)
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert answer.headers["x-served-by"]


async def test_a_stream_has_the_blocks_of_the_whole_reply(http: httpx.AsyncClient, script: Script) -> None:
    script.replies = [f"<think>\nLook it up.\n</think>\n\nOne moment.\n{CALL}"]
    body = {"tools": [TOOL], "thinking": {"type": "enabled"}}
    whole = (await ask(http, **body)).json()
    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use"]
    assert whole["content"][2]["input"] == {"city": "Paris"}
    assert whole["stop_reason"] == "tool_use"
    streamed = events_of(await ask(http, stream=True, **body))
    assert all(event == data["type"] for event, data in streamed)
    assert streamed[0][0] == "message_start"
    assert [event for event, _ in streamed[-2:]] == ["message_delta", "message_stop"]
    starts = [data for event, data in streamed if event == "content_block_start"]
    stops = [data["index"] for event, data in streamed if event == "content_block_stop"]
    assert [start["index"] for start in starts] == stops == [0, 1, 2]
    assert [start["content_block"]["type"] for start in starts] == ["thinking", "text", "tool_use"]
    deltas = [data for event, data in streamed if event == "content_block_delta"]
    joined = ["".join(d["delta"].get(field, "") for d in deltas) for field in ("thinking", "text", "partial_json")]
    assert joined[:2] == [whole["content"][0]["thinking"], whole["content"][1]["text"]]
    assert json.loads(joined[2]) == {"city": "Paris"}
    assert streamed[-2][1]["usage"] == whole["usage"]


async def test_why_a_reply_ended(http: httpx.AsyncClient, script: Script) -> None:
    script.replies = ["one two END three"]
    body = (await ask(http, stop_sequences=["STOP", "END"])).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "END")
    body = (await ask(http, max_tokens=2)).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("max_tokens", None)


@pytest.mark.parametrize("engine", ["llama.cpp", "card"])
@pytest.mark.parametrize("choice", [None, {"type": "any"}, {"type": "none"}])
async def test_the_count_is_that_of_the_prompt(
    http: httpx.AsyncClient, script: Script, engine: str, choice: dict[str, Any] | None
) -> None:
    script.engine, script.replies = engine, [CALL]
    body = {"model": "tiny", "messages": HELLO, "system": "Be brief.", "tools": [TOOL], "tool_choice": choice}
    counted = await http.post("/v1/messages/count_tokens", json=body)
    await ask(http, **body)
    assert counted.json() == {"input_tokens": len(script.prompts[0].token_ids)}


async def test_what_cannot_fit_is_counted_and_refused_in_words_that_claude_code_reads(http: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "x" * 700}]
    counted = (await http.post("/v1/messages/count_tokens", json={"messages": messages})).json()["input_tokens"]
    answer = await ask(http, messages=messages)
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "type": "invalid_request_error",
        "message": f"prompt is too long: {counted} tokens > 599 maximum",
    }
    assert answer.json()["request_id"] == answer.headers["request-id"]


async def test_an_engine_that_dies_ends_the_stream_with_an_error(http: httpx.AsyncClient, script: Script) -> None:
    script.dies_after = 1
    event, data = events_of(await ask(http, stream=True))[-1]
    assert (event, data["error"]["type"]) == ("error", "api_error")


@pytest.mark.parametrize("body", [{"messages": []}, {"messages": "x"}, {"max_tokens": 0}, {"model": "nobody"}])
async def test_errors_have_anthropics_shape(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await ask(http, **body)
    assert answer.status_code == (404 if "model" in body else 400)
    assert set(answer.json()) == {"type", "error", "request_id"}


async def test_a_pattern_serves_fixed_names(http: httpx.AsyncClient) -> None:
    assert (await ask(http, model="claude-3-5-haiku-20241022")).json()["model"] == "tiny"


async def test_models_have_the_shape_of_who_asks(http: httpx.AsyncClient) -> None:
    theirs = (await http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()
    ours = (await http.get("/v1/models")).json()
    assert (ours["object"], theirs["has_more"]) == ("list", False)
    assert [model["id"] for model in theirs["data"]] == [model["id"] for model in ours["data"]]
    assert {model["type"] for model in theirs["data"]} == {"model"}


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
async def test_a_key_comes_in_either_header(tmp_path: Path, script: Script, header: str) -> None:
    key, line = new_key("laptop")
    (tmp_path / "keys").write_text(line)
    settings = {"api_keys_file": tmp_path / "keys"}
    async with scripted_service(tmp_path, script, settings) as app, client_of(app) as http:
        refused = await ask(http)
        http.headers[header] = key if header == "x-api-key" else f"Bearer {key}"
        answered = await ask(http)
    assert (refused.status_code, answered.status_code) == (401, 200)
    assert refused.json()["error"]["type"] == "authentication_error"
