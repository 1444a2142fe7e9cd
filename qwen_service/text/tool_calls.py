"""Parses the payload between <tool_call> and </tool_call>: a JSON object with a name and arguments."""

import json
import re
from collections.abc import Collection
from functools import cache
from typing import Any, Never
from uuid import uuid4

from qwen_service.chat import ToolCall

_BARE_CALL = re.compile(r'\s*(```(json)?\s*)?\{\s*"name"\s*:\s*"(?P<name>[^"\\]*)(?P<end>"?)')
_BARE_OPENINGS = ('{"name":"', '```json{"name":"', '```{"name":"')


@cache
def _string_or_tag(tag: str) -> re.Pattern[str]:
    return re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|(?P<tag>' + re.escape(tag) + ")", re.DOTALL)


def find_outside_strings(text: str, tag: str) -> int:
    """The first position of `tag` outside of every JSON string; -1: none."""
    for match in _string_or_tag(tag).finditer(text):
        if match["tag"]:
            return match.start()
    return -1


def parse_tool_call(payload: str) -> ToolCall | None:
    """Parse a call; None when the payload is no call. Raw newlines in strings, which models write, are accepted."""
    try:
        call = json.loads(payload, strict=False, parse_constant=_refuse)
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str) or not name or not name.isprintable():
            return None
        arguments = _arguments_text(call.get("arguments"))
    except (ValueError, RecursionError):  # RecursionError: brackets nested a thousand deep
        return None
    return ToolCall(f"call_{uuid4().hex}", name, arguments)


def could_be_bare_call(text: str, names: Collection[str]) -> bool | None:
    """Whether a reply begins like a call of a known tool without tags; None: more text is needed."""
    match = _BARE_CALL.match(text)
    if match is None:
        begin = "".join(text.split())
        return None if any(opening.startswith(begin) for opening in _BARE_OPENINGS) else False
    if match["end"]:
        return match["name"] in names
    return None if any(name.startswith(match["name"]) for name in names) else False


def bare_call_payload(text: str) -> str | None:
    """The first JSON object, once it is complete."""
    start = text.index("{")
    try:
        _, length = json.JSONDecoder(strict=False).raw_decode(text[start:])
    except (ValueError, RecursionError):
        return None
    return text[start : start + length]


def _arguments_text(arguments: Any) -> str:
    """The arguments as JSON text. Raises ValueError when they are no JSON object."""
    if isinstance(arguments, str):  # encoded twice, as some fine-tunes do
        arguments = json.loads(arguments, strict=False, parse_constant=_refuse)
    if arguments is None:
        return "{}"
    if not isinstance(arguments, dict):
        raise ValueError("arguments are not an object")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace").decode()  # half a surrogate pair has no form in UTF-8


def _refuse(constant: str) -> Never:
    raise ValueError(f"{constant} is not JSON")
