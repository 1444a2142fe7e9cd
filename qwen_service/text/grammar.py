"""Makes a grammar (llguidance's Lark dialect, which llama.cpp takes) for replies that must be tool calls or JSON.

The tags are quoted, because they are ordinary tokens of Qwen's vocabulary; an unquoted name means a control token.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_service.chat import Tool

MOST_ITEMS = 2_000  # items that all array bounds of one schema may add up to; each of 128 tools may have a schema
ITEMS = ("minItems", "maxItems")
DATA = ("const", "enum", "default", "examples")  # values, not schemas

# The engine silently drops a whole grammar because of one unknown keyword. Told to be lenient, it
# ignores that keyword, which we check ourselves. At most one white space between two tokens of JSON: small models
# write as much as they may, and each costs a quarter of a second on a card.
GUIDANCE = {"x-guidance": {"lenient": True, "whitespace_pattern": r"[ \n]?"}}
Tags = tuple[str, str]


def guided(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a client's schema that the engine enforces. We check the whole schema on the finished reply.

    llguidance expands an array's bounds item by item: `minItems` of 10**9 took all memory, and the engine was killed;
    `maxItems` of 10**6 delayed every generation by five seconds. It bounds the other ways to a huge grammar itself.
    """
    return {**_Bounded().copy(schema), **GUIDANCE}


class _Bounded:
    """Copies one schema and leaves out array bounds that exceed the rest of MOST_ITEMS."""

    def __init__(self) -> None:
        self._left = MOST_ITEMS

    def copy(self, part: Any) -> Any:
        match part:
            case Mapping():
                kept = {key: value for key, value in part.items() if not self._is_vain(key, value)}
                return {key: value if key in DATA else self.copy(value) for key, value in kept.items()}
            case list() | tuple():
                return [self.copy(item) for item in part]
            case _:
                return part

    def _is_vain(self, key: str, value: Any) -> bool:
        """Whether this is an array bound that is too large. A property of the same name has a schema, not a number."""
        if key not in ITEMS or not isinstance(value, int | float):
            return False
        if not value <= self._left:  # NaN counts as too large
            return True
        self._left -= max(0, int(value))
        return False


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
