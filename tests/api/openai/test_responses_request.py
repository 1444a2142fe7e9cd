"""Bodies of the Responses API, translated."""

from typing import Any

import pytest

from qwen_service.api.openai.responses.request import chat_request, skipped_tools
from qwen_service.api.openai.responses.wire import ResponsesBody
from qwen_service.chat import ChatRequest, JsonFormat, Message, NamedTool, ToolCall
from qwen_service.errors import (
    RequestError,
    RequestTooLarge,
    Unsupported,
)

TOOL: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "strict": None,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def translated(given: Any = "Hi", **body: Any) -> ChatRequest:
    return chat_request(ResponsesBody.model_validate({"input": given} | body), "resp_1", max_messages=20)


def refused(given: Any = "Hi", **body: Any) -> RequestError:
    with pytest.raises(RequestError) as error:
        translated(given, **body)
    return error.value


def said(role: str, *texts: str, kind: str = "input_text", **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text} for text in texts], **more}


def test_a_text_a_message_without_type_and_a_list_of_parts_are_the_same() -> None:
    expected = (Message("user", "Hi"),)
    assert translated("Hi").messages == expected
    assert translated([{"role": "user", "content": "Hi"}]).messages == expected
    assert translated([said("user", "H", "i", id="msg_1", status="completed")]).messages == expected


def test_instructions_and_developers_are_the_system() -> None:
    request = translated([said("developer", "Be kind."), said("user", "Hi")], instructions="Be brief.")
    assert request.messages == (Message("system", "Be brief."), Message("system", "Be kind."), Message("user", "Hi"))


def test_a_reply_of_several_items_is_one_message() -> None:
    items = [
        said("user", "Weather?"),
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Look."}]},
        said("assistant", "So: ", kind="output_text"),
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Zürich"}'},
        said("assistant", "and", kind="output_text"),
        {"type": "function_call", "call_id": "c2", "name": "now", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
    ]
    assert translated(items).messages == (
        Message("user", "Weather?"),
        Message(
            "assistant",
            "So: and",
            reasoning="Look.",
            tool_calls=(ToolCall("c1", "weather", '{"city": "Zürich"}'), ToolCall("c2", "now", "{}")),
        ),
        Message("tool", "rain", tool_call_id="c1"),
        Message("tool", "noon", tool_call_id="c2"),
    )


def test_two_messages_of_the_assistant_stay_two_and_thoughts_begin_another() -> None:
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    items = [said("assistant", "A"), said("assistant", "B"), thought, said("assistant", "C")]
    assert translated(items).messages == (
        Message("assistant", "A"),
        Message("assistant", "B"),
        Message("assistant", "C", reasoning="Hm."),
    )


def test_encrypted_thoughts_are_nothing() -> None:
    secret = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
    assert translated([said("user", "Hi"), secret]).messages == (Message("user", "Hi"),)


def test_arguments_of_a_call_that_was_cut_are_passed_on() -> None:
    cut = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Pa'}
    assert translated([cut]).messages[0].tool_calls == (ToolCall("c1", "weather", '{"city": "Pa'),)


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "message", "content": "Hi"}, "input[0].role"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input[0].content[0].image_url"),
        ({"role": "system", "content": [{"type": "input_image", "image_url": "x"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input[0].content[0].image_url"),
        ({"role": "user", "content": [{"type": "input_file"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text"),
        ({"type": "item_reference", "id": "msg_1"}, "input[0].type"),
        ({"type": "computer_call", "call_id": "c"}, "input[0].type"),
        ({"type": "function_call", "name": "f"}, "input[0]"),
        ({"type": "function_call", "call_id": "c", "name": "f", "arguments": "[" * 100_000}, "input[0].arguments"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id"),
    ],
)
def test_items_that_cannot_be_read_are_named(item: dict[str, Any], param: str) -> None:
    assert refused([item]).param == param


@pytest.mark.parametrize(
    ("field", "value"),
    [("previous_response_id", "resp_9"), ("conversation", "conv_1"), ("background", True), ("prompt", {"id": "p"})],
)
def test_what_needs_a_store_is_refused_with_what_to_do_instead(field: str, value: Any) -> None:
    error = refused(**{field: value})
    assert isinstance(error, Unsupported)
    assert error.param == field
    assert "send" in error.message.lower()
    assert translated(store=True, background=False, previous_response_id=None).messages == (Message("user", "Hi"),)


def test_items_are_bounded_and_must_be_there() -> None:
    assert isinstance(refused([said("user", "Hi")] * 21), RequestTooLarge)
    assert refused([]).param == "input"
    assert translated([], instructions="Speak.").messages == (Message("system", "Speak."),)


def test_tools_are_flat_and_others_are_skipped() -> None:
    others = [
        {"type": "web_search"},
        {"type": "namespace", "name": "mcp", "tools": []},
        {"type": "custom", "name": "a b"},
    ]
    body = ResponsesBody.model_validate({"input": "Hi", "tools": [TOOL, *others]})
    assert [tool.name for tool in chat_request(body, "r", max_messages=9).tools] == ["weather"]
    assert skipped_tools(body) == ("tools.web_search", "tools.mcp", "tools.custom")
    assert refused(tools=[{"type": "function"}]).param == "tools[0].name"
    assert refused(tools=[{**TOOL, "parameters": {"type": "nonsense"}}]).param == "tools[0].parameters"


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "weather"}, NamedTool("weather")),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}, "auto"),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}, "required"),
    ],
)
def test_tool_choice(choice: Any, meant: Any) -> None:
    request = translated(tools=[TOOL, {**TOOL, "name": "other"}], tool_choice=choice, parallel_tool_calls=False)
    assert (request.tool_choice, request.parallel_tool_calls) == (meant, False)
    allowed = isinstance(choice, dict) and choice["type"] == "allowed_tools"
    assert len(request.tools) == (1 if allowed else 2)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "f"}, {"type": "file_search"}])
def test_a_choice_of_what_is_not_there_is_refused(choice: Any) -> None:
    assert (refused(tool_choice=choice).param or "").startswith("tool_choice")


def test_formats() -> None:
    def format_of(**text: Any) -> JsonFormat | None:
        return translated(text={"format": text}).response_format

    assert format_of(type="text") is None
    assert format_of(type="json_object") == JsonFormat(None)
    assert format_of(type="json_schema", name="x", schema=SCHEMA, strict=True) == JsonFormat(SCHEMA)
    assert refused(text={"format": {"type": "json_schema", "name": "x"}}).param == "text.format.schema"


@pytest.mark.parametrize(
    ("effort", "meant"), [(None, None), ("none", False), ("minimal", False), ("low", True), ("xhigh", True)]
)
def test_effort_is_a_switch(effort: str | None, meant: bool | None) -> None:
    assert translated(reasoning={"effort": effort, "summary": "auto"}).thinking is meant


def test_limits_and_sampling() -> None:
    request = translated(max_output_tokens=7, temperature=0.5, top_p=0.9, truncation="disabled")
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.top_p) == (7, 0.5, 0.9)
    assert (request.truncate, translated(truncation="auto").truncate, translated().truncate) == (False, True, True)
    assert translated(max_output_tokens=-1).sampling.max_tokens is None
    assert translated().sampling.top_logprobs is None
    assert translated(include=["message.output_text.logprobs"]).sampling.top_logprobs == 0
    assert translated(top_logprobs=3).sampling.top_logprobs == 3
