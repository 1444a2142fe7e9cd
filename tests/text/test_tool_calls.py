import json

import pytest

from qwen_service.text.tool_calls import find_outside_strings, parse_tool_call


def test_a_closing_tag_inside_a_string_is_not_the_end() -> None:
    text = '{"name": "write", "arguments": {"text": "a </tool_call> b"}}</tool_call>'
    assert find_outside_strings(text, "</tool_call>") == text.rindex("</tool_call>")


def test_an_escaped_quote_does_not_end_a_string() -> None:
    text = r'{"t": "say \"</tool_call>\" \\"}</tool_call>'
    assert find_outside_strings(text, "</tool_call>") == text.rindex("</tool_call>")


@pytest.mark.parametrize("text", ['{"t": "open</tool_call>', '{"t": "open\\', '{"t": "', ""])
def test_a_tag_in_a_string_that_is_still_open_is_not_found(text: str) -> None:
    assert find_outside_strings(text, "</tool_call>") == -1


def test_braces_and_brackets_in_arguments_survive() -> None:
    arguments = {"code": "if (a[0] == '}') { return \"]\"; }", "nested": {"empty": {}, "list": [[{}]]}}
    call = parse_tool_call(json.dumps({"name": "run", "arguments": arguments}))
    assert call is not None
    assert json.loads(call.arguments) == arguments


@pytest.mark.parametrize(
    "payload", ['{"name": "now"}', '{"name": "now", "arguments": null}', '{"name":"now","arguments":{}}']
)
def test_no_arguments_are_an_empty_object(payload: str) -> None:
    call = parse_tool_call(payload)
    assert call is not None
    assert call.arguments == "{}"


def test_arguments_that_were_encoded_twice_are_an_object_again() -> None:
    call = parse_tool_call(r'{"name": "f", "arguments": "{\"a\": 1}"}')
    assert call is not None
    assert call.arguments == '{"a": 1}'


def test_raw_newlines_in_strings_are_taken_and_escaped() -> None:
    call = parse_tool_call('{"name": "f", "arguments": {"a": "one\ntwo"}}')
    assert call is not None
    assert call.arguments == r'{"a": "one\ntwo"}'


def test_characters_outside_ascii_stay_readable() -> None:
    call = parse_tool_call('{"name": "f", "arguments": {"city": "北京 😀"}}')
    assert call is not None
    assert call.arguments == '{"city": "北京 😀"}'


def test_half_a_surrogate_pair_is_replaced_because_utf_8_has_no_form_for_it() -> None:
    call = parse_tool_call(r'{"name": "f", "arguments": {"a": "\ud800"}}')
    assert call is not None
    assert call.arguments == '{"a": "?"}'


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "not JSON",
        "[]",
        '{"arguments": {}}',
        '{"name": 3, "arguments": {}}',
        '{"name": "", "arguments": {}}',
        r'{"name": "\ud800", "arguments": {}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "text"}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {"a": 1e999}}',
        '{"name": "f", "arguments": {}}}',
        '{"name": "f", "arguments": ' + "[" * 100_000,
    ],
)
def test_what_is_no_call_is_none(payload: str) -> None:
    assert parse_tool_call(payload) is None


def test_every_call_has_an_id_of_its_own() -> None:
    ids = {call.id for _ in range(100) if (call := parse_tool_call('{"name": "f"}'))}
    assert len(ids) == 100
    assert all(call_id.startswith("call_") for call_id in ids)
