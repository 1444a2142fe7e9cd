from typing import Any

import pytest

from qwen_service.api.openai.request import chat_request, choices, prompt_requests
from qwen_service.api.openai.wire import ChatCompletionBody, CompletionBody
from qwen_service.chat import ChatRequest, JsonFormat, Message, NamedTool, Tool, ToolCall
from qwen_service.errors import InvalidRequest, RequestError, RequestTooLarge, Unsupported

HI = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def chat(*messages: Any, **fields: Any) -> ChatRequest:
    body = ChatCompletionBody.model_validate({"messages": list(messages) or [HI], **fields})
    return chat_request(body, "r1", max_messages=10)


def completion(**fields: Any) -> list[ChatRequest]:
    return prompt_requests(CompletionBody.model_validate(fields), "r1", max_choices=8)


def refused(*messages: Any, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        chat(*messages, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Hi", "Hi"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "no"}], "ano"),
    ],
)
def test_content_is_a_string_nothing_or_text_parts(content: Any, text: str) -> None:
    assert chat({"role": "assistant", "content": content}).messages == (Message("assistant", text),)


def test_content_may_be_missing_beside_calls() -> None:
    (message,) = chat({"role": "assistant", "tool_calls": [CALL]}).messages
    assert message == Message("assistant", tool_calls=(ToolCall("c1", "f", '{"a": 1}'),))


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_not_text_are_refused_and_never_fetched(kind: str) -> None:
    error = refused(HI, {"role": "user", "content": [{"type": kind, kind: {"url": "http://127.0.0.1/"}}]})
    assert isinstance(error, Unsupported)
    assert error.param == f"messages[1].content[0].{'image_url' if kind == 'image_url' else 'type'}"


def test_a_text_part_without_text_is_refused() -> None:
    assert refused({"role": "user", "content": [{"type": "text"}]}).param == "messages[0].content[0].text"


def test_developer_is_another_word_for_system() -> None:
    assert chat({"role": "developer", "content": "Be brief"}).messages[0].role == "system"


def test_a_tool_result_goes_back_with_the_id_of_its_call() -> None:
    (message,) = chat({"role": "tool", "tool_call_id": "c1", "content": "18"}).messages
    assert message == Message("tool", "18", tool_call_id="c1")


def test_a_tool_message_without_an_id_answers_the_one_open_call() -> None:
    def call(*ids: str) -> dict[str, Any]:
        calls = [{"id": id_, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id_ in ids]
        return {"role": "assistant", "content": None, "tool_calls": calls}

    result = {"role": "tool", "content": "18"}
    assert chat(call("c1"), result).messages[-1].tool_call_id == "c1"
    assert chat(call("c1", "c2"), {**result, "tool_call_id": "c1"}, result).messages[-1].tool_call_id == "c2"
    user = {"role": "user", "content": "?"}
    for messages in ([result], [call("c1", "c2"), result], [call("c1"), result, result], [call("c1"), user, result]):
        assert refused(*messages).param == f"messages[{len(messages) - 1}].tool_call_id"


@pytest.mark.parametrize(
    ("arguments", "expected"), [({"a": 10**30}, f'{{"a": {10**30}}}'), ("", "{}"), (None, "{}"), ("[]", "[]")]
)
def test_arguments_come_as_json_text_an_object_or_nothing(arguments: Any, expected: str) -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    assert chat({"role": "assistant", "tool_calls": [call]}).messages[0].tool_calls[0].arguments == expected


@pytest.mark.parametrize("arguments", ['{"a": ', "yes"])
def test_arguments_of_a_call_that_was_cut_are_passed_on(arguments: str) -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    assert chat({"role": "assistant", "tool_calls": [call]}).messages[0].tool_calls[0].arguments == arguments


def test_arguments_that_are_nested_too_deeply_are_refused() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": "[" * 100_000}}
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        chat({"role": "assistant", "tool_calls": [call]})


def test_reasoning_and_names_are_kept() -> None:
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "name": "bot"}
    assert chat(message).messages == (Message("assistant", "Hi", reasoning="hm", name="bot"),)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 5),
        ({"max_tokens": 9, "max_completion_tokens": 7}, 7),
        ({"max_tokens": None}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": -1, "max_completion_tokens": 7}, 7),
    ],
)
def test_the_smaller_of_both_limits_wins(fields: dict[str, Any], limit: int | None) -> None:
    assert chat(**fields).sampling.max_tokens == limit


def test_sampling_is_carried_over_and_silence_stays_silence() -> None:
    given = {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7, "presence_penalty": 1}
    sampling = chat(**given, frequency_penalty=-1, repetition_penalty=1.1, logit_bias={"12": -100}).sampling
    assert {name: getattr(sampling, name) for name in given} == given
    assert (sampling.frequency_penalty, sampling.repeat_penalty, sampling.logit_bias) == (-1, 1.1, {12: -100})
    assert chat().sampling.temperature is None


def test_logit_bias_names_token_ids() -> None:
    assert refused(logit_bias={"hello": 1}).param == "logit_bias"


@pytest.mark.parametrize(("stop", "stops"), [(None, ()), ("a", ("a",)), (["a", "", "b"], ("a", "b")), ("", ())])
def test_stop_is_one_string_or_several(stop: Any, stops: tuple[str, ...]) -> None:
    assert chat(stop=stop).stop == stops


@pytest.mark.parametrize(
    ("fields", "top"), [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3)]
)
def test_logprobs_of_a_chat(fields: dict[str, Any], top: int | None) -> None:
    assert chat(**fields).sampling.top_logprobs == top


def test_top_logprobs_alone_are_refused() -> None:
    assert refused(top_logprobs=2).param == "top_logprobs"
    assert chat(top_logprobs=0).sampling.top_logprobs is None


def test_tools_become_neutral_tools() -> None:
    described = {"type": "function", "function": {"name": "g", "description": "does", "parameters": None}}
    request = chat(tools=[TOOL, described], parallel_tool_calls=False)
    assert request.tools == (Tool("f", "", {"type": "object"}), Tool("g", "does", {}))
    assert request.parallel_tool_calls is False


@pytest.mark.parametrize("schema", [{"description": "\ud800"}, {"maximum": 10**30}, {"a": "x" * 300_000}], ids=range(3))
def test_a_schema_that_is_no_json_or_too_large_is_refused(schema: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert refused(tools=[tool]).param == "tools[0].function.parameters"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "f"}}, NamedTool("f")),
    ],
)
def test_tool_choice(choice: Any, expected: Any) -> None:
    assert chat(tools=[TOOL], tool_choice=choice).tool_choice == expected


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "g"}}])
def test_a_choice_that_cannot_be_made_is_refused(choice: Any) -> None:
    assert refused(tool_choice=choice, tools=None if choice == "required" else [TOOL]).param == "tool_choice"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonFormat()),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}, JsonFormat({"type": "array"})),
    ],
)
def test_response_format(given: Any, expected: JsonFormat | None) -> None:
    assert chat(response_format=given).response_format == expected


def test_a_schema_format_needs_a_schema() -> None:
    assert refused(response_format={"type": "json_schema"}).param == "response_format"


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning": {"effort": "none"}}, False),
        ({"reasoning": {"effort": "max"}}, True),
        ({"reasoning": {}}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
    ],
)
def test_thinking_is_switched_by_effort_and_by_template_argument(fields: dict[str, Any], thinking: bool | None) -> None:
    assert chat(**fields).thinking is thinking


def test_other_template_arguments_are_passed_on() -> None:
    request = chat(chat_template_kwargs={"enable_thinking": True, "date": "today"})
    assert request.template_kwargs == {"date": "today"}
    assert refused(chat_template_kwargs={"enable_thinking": "yes"}).param == "chat_template_kwargs"


@pytest.mark.parametrize(
    ("field", "value"),
    [("functions", []), ("function_call", "auto"), ("audio", {"voice": "x"}), ("modalities", ["text", "audio"])],
)
def test_what_is_not_offered_is_refused_by_name(field: str, value: Any) -> None:
    error = refused(**{field: value})
    assert isinstance(error, Unsupported)
    assert error.param == field


def test_fields_that_nobody_knows_are_ignored() -> None:
    request = chat(
        {**HI, "cache_control": {}}, service_tier="auto", store=True, metadata={"a": "b"}, modalities=["text"]
    )
    assert request == chat()


def test_too_many_messages_are_refused() -> None:
    error = refused(*[HI] * 11)
    assert isinstance(error, RequestTooLarge)
    assert error.param == "messages"


def test_choices_of_one_request_have_seeds_of_their_own() -> None:
    assert [choice.sampling.seed for choice in choices(chat(seed=7), 3, 8)] == [7, 8, 9]
    assert [choice.sampling.seed for choice in choices(chat(), 2, 8)] == [None, None]
    with pytest.raises(InvalidRequest, match="max_choices") as caught:
        choices(chat(), 9, 8)
    assert caught.value.param == "n"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Once", ["Once"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
    ],
)
def test_a_prompt_is_a_string_ids_or_a_list_of_either(prompt: Any, prompts: list[Any]) -> None:
    assert [request.prompt for request in completion(prompt=prompt)] == prompts


@pytest.mark.parametrize("prompt", [None, "", [], [[]], ["a", ""]])
def test_a_missing_or_empty_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("prompt", [[-1], [[5, -7]]])
def test_token_ids_are_not_negative(prompt: Any) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        CompletionBody.model_validate({"prompt": prompt})


def test_each_prompt_has_its_choices_in_order() -> None:
    assert [request.prompt for request in completion(prompt=["a", "b"], n=2)] == ["a", "a", "b", "b"]
    with pytest.raises(InvalidRequest):
        completion(prompt=["a", "b"], n=5)


@pytest.mark.parametrize(("logprobs", "top"), [(None, None), (0, 0), (3, 3), (False, None), (True, 1)])
def test_logprobs_of_a_completion_are_a_number(logprobs: Any, top: int | None) -> None:
    assert completion(prompt="a", logprobs=logprobs)[0].sampling.top_logprobs == top


def test_best_of_is_refused_unless_it_changes_nothing() -> None:
    assert len(completion(prompt="a", best_of=2, n=2)) == 2
    with pytest.raises(Unsupported):
        completion(prompt="a", best_of=2)


def test_a_completion_carries_suffix_stop_and_limit() -> None:
    (request,) = completion(prompt="a", suffix="z", stop=["\n"], max_tokens=3, model="m")
    assert (request.suffix, request.stop, request.sampling.max_tokens, request.model) == ("z", ("\n",), 3, "m")


def test_a_completion_with_messages_is_a_chat() -> None:
    body = CompletionBody.model_validate({"messages": [HI], "logprobs": 2, "max_tokens": 4})
    request = chat_request(body, "r1", max_messages=10)
    assert request.messages == (Message("user", "Hi"),)
    both = CompletionBody.model_validate({"messages": [HI], "prompt": "x"})
    with pytest.raises(InvalidRequest):
        chat_request(both, "r1", max_messages=10)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2.1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 1.5},
        {"min_p": -1},
        {"top_k": 10**9},
        {"presence_penalty": 3},
        {"repetition_penalty": 0},
        {"seed": 2**64},
        {"max_tokens": 0},
        {"max_tokens": 2**40},
        {"n": 0},
        {"n": 1000},
        {"stop": ["a"] * 65},
        {"stop": "x" * 2000},
        {"logit_bias": {"1": 101}},
        {"top_logprobs": 21},
        {"messages": []},
        {"messages": "Hi"},
        {"messages": [{"role": "wizard", "content": "Hi"}]},
        {"messages": [{"content": "Hi"}]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [TOOL] * 129},
        {"stream": "perhaps"},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_the_wire_models(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        ChatCompletionBody.model_validate({"messages": [HI], **fields})


@pytest.mark.parametrize("options", [None, {}, {"include_usage": None}, {"include_usage": True, "other": 1}])
def test_stream_options_are_accepted_without_a_stream(options: Any) -> None:
    body = ChatCompletionBody.model_validate({"messages": [HI], "stream": False, "stream_options": options})
    wanted = body.stream_options is not None and body.stream_options.include_usage
    assert bool(wanted) == bool(options and options.get("include_usage"))
