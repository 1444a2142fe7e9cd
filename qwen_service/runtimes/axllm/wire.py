"""The OpenAI-like protocol of `axllm serve`: makes request bodies and reads streams. IO-free."""

import base64
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

from qwen_service.chat import ChatRequest, Image, Message, Sampling, ToolCall
from qwen_service.errors import ProtocolError
from qwen_service.text.template import tool_dict

_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
# Some builds turn temperature 0 into 1.0. top_k 1 is greedy at any temperature.
GREEDY = {"temperature": 0.01, "top_k": 1}


def request_body(
    model: str,
    request: ChatRequest,
    sampling: Sampling,
    max_tokens: int,
    said: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Make a body. `said`: text as shown -> text as written: a history with pictures must be sent back as it was written."""
    with_pictures = any(message.images for message in request.messages)
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, said if with_pictures else {}) for message in request.messages],
        "stream": True,
        "max_tokens": max_tokens,
        "enable_thinking": bool(request.thinking),
        **_sampling(sampling),
    }
    if request.tools and request.tool_choice != "none":
        body["tools"] = [tool_dict(tool) for tool in request.tools]
    return body


def _sampling(sampling: Sampling) -> dict[str, float]:
    if sampling.temperature == 0:
        return GREEDY
    named = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return {name: value for name, value in named.items() if value is not None}


def _message(message: Message, said: Mapping[str, str]) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        pictures = [{"type": "image_url", "image_url": {"url": _data_uri(image)}} for image in message.images]
        wire["content"] = [*pictures, {"type": "text", "text": message.content}]
    if message.role == "assistant" and (as_written := said.get(message.content.strip())) is not None:
        return {**wire, "content": as_written}
    if message.tool_calls:
        wire["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _data_uri(image: Image) -> str:
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def shown(text: str) -> str:
    """The part of a reply that clients are shown and send back: without thoughts."""
    return _THOUGHTS.sub("", text).strip()


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class AxLlmStream:
    """Turns the data of server-sent events into the text as the model wrote it, tool calls included.

    `ended`: [DONE] came. `finished`: it came after a finish reason; without one, axllm's time limit cut the reply.
    """

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, str]] = {}
        self.ended = False
        self.finished = False
        self.prompt_tokens = 0  # reported at the end by builds of 2026; 0: not reported

    def feed(self, data: bytes) -> str:
        """Read the data of one event. Raises ProtocolError."""
        if data.strip() == b"[DONE]":
            self.ended = True
            return self._calls_as_text()
        try:
            chunk = orjson.loads(data.decode(errors="replace"))  # a token can end within a character
            choices = chunk.get("choices") or []
            self._note_usage(chunk.get("usage"))
        except (orjson.JSONDecodeError, AttributeError) as error:
            raise ProtocolError(f"axllm sent an event that cannot be read: {data[:200]!r}") from error
        if "error" in chunk:
            raise ProtocolError(f"axllm reports: {chunk['error']}")
        return "".join(map(self._of_choice, choices))

    def _note_usage(self, usage: object) -> None:
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if isinstance(tokens, int) and tokens > 0:
            self.prompt_tokens = tokens

    def _of_choice(self, choice: Mapping[str, Any]) -> str:
        self.finished = self.finished or bool(choice.get("finish_reason"))
        delta = choice.get("delta") or {}
        for call in delta.get("tool_calls") or ():
            self._add_call(call)
        return str(delta.get("content") or "")

    def _add_call(self, call: Mapping[str, Any]) -> None:
        function = call.get("function") or {}
        known = self._calls.setdefault(call.get("index", len(self._calls)), {"name": "", "arguments": ""})
        for key in known:
            known[key] += function.get(key) or ""

    def _calls_as_text(self) -> str:
        """Write calls as text, as Qwen does: only our output parser decides what is a call."""
        calls = (
            f'{{"name": {json.dumps(c["name"])}, "arguments": {c["arguments"] or "{}"}}}' for c in self._calls.values()
        )
        return "".join(f"\n<tool_call>\n{call}\n</tool_call>" for call in calls)
