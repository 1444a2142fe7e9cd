"""Makes a grammar (llguidance's Lark dialect, which llama.cpp takes) for replies that must be tool calls or JSON.

The tags are quoted, because they are ordinary tokens of Qwen's vocabulary; an unquoted name means a control token.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_service.chat import Tool
from qwen_service.text.engine_schema import guided

Tags = tuple[str, str]


def reply_grammar(
    tools: Sequence[Tool],
    tags: Tags | None,
    *,
    parallel: bool = True,
    thinking: Tags | None = None,
    answer: Mapping[str, Any] | None = None,
) -> str:
    """A grammar for calls of `tools`, or for JSON of the schema `answer`; a block between the `thinking` tags may come first."""
    rules = {"think": _thinking(thinking)} if thinking else {}
    start = "think? " if thinking else ""
    choices = []
    if tools and tags:
        choices.append('call ("\\n" call)*' if parallel else "call")
        rules |= _calls(tools, tags)
    if answer is not None:
        choices.append("answer")
        rules["answer"] = _json(answer)
    rules = {"start": f"{start}({' | '.join(choices)})"} | rules
    return "\n".join(["%llguidance {}", *(f"{name}: {rule}" for name, rule in rules.items())]) + "\n"


def _calls(tools: Sequence[Tool], tags: Tags) -> dict[str, str]:
    names = [f"tool_{n}" for n in range(len(tools))]
    call = f"{_quoted(tags[0] + chr(10))} ({' | '.join(names)}) {_quoted(chr(10) + tags[1])}"
    return {"call": call} | {name: _tool(tool) for name, tool in zip(names, tools, strict=True)}


def _tool(tool: Tool) -> str:
    begin = f'{{"name": {_quoted(tool.name)}, "arguments": '
    return f'{_quoted(begin)} {_json(tool.parameters or {"type": "object"})} "}}"'


def _thinking(tags: Tags) -> str:
    closing = tags[1].replace("/", r"\/")
    return rf"{_quoted(tags[0])} /(?s:.*?){closing}\n*/"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps(guided(schema))}"
