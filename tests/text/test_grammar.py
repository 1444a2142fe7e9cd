"""The text of the grammar; that llama.cpp takes it, and what a model then writes, is tests/clients/test_real_qwen.py."""

from qwen_service.chat import Tool
from qwen_service.text.grammar import reply_grammar

TAGS = ("<tool_call>", "</tool_call>")
NOW = Tool("now")
ADD = Tool("add", parameters={"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {}}})


def rules(grammar: str) -> dict[str, str]:
    head, *lines = grammar.splitlines()
    assert head == "%llguidance {}"
    return dict(line.split(": ", 1) for line in lines)


def test_each_tool_has_a_rule_with_its_own_schema_as_the_root() -> None:
    result = rules(reply_grammar([NOW, ADD], TAGS))
    assert result["start"] == '(call ("\\n" call)*)'
    assert result["call"] == r'"<tool_call>\n" (tool_0 | tool_1) "\n</tool_call>"'
    assert result["tool_0"].startswith(r'"{\"name\": \"now\", \"arguments\": " %json {"type": "object"')
    assert '"$ref": "#/$defs/n"' in result["tool_1"]


def test_without_parallel_calls_there_is_exactly_one() -> None:
    assert rules(reply_grammar([NOW], TAGS, parallel=False))["start"] == "(call)"


def test_an_answer_may_stand_instead_of_calls() -> None:
    result = rules(reply_grammar([NOW], TAGS, answer={"type": "array"}))
    assert result["start"].endswith("| answer)")
    assert result["answer"].startswith('%json {"type": "array"')


def test_without_tools_there_is_only_the_answer() -> None:
    assert rules(reply_grammar([], TAGS, answer={}))["start"] == "(answer)"


def test_a_think_block_may_come_first() -> None:
    result = rules(reply_grammar([NOW], TAGS, thinking=("<think>", "</think>")))
    assert result["start"].startswith("think? ")
    assert result["think"] == r'"<think>" /(?s:.*?)<\/think>\n*/'


def test_quotes_in_a_name_cannot_leave_the_grammars_string() -> None:
    assert rules(reply_grammar([Tool('a" | "b')], TAGS))["tool_0"].startswith(r'"{\"name\": \"a\\\" | \\\"b\", ')
