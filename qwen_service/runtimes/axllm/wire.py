"""The OpenAI-like HTTP of `axllm serve`: a request for it, and what its stream says. IO-free."""

import json
from collections.abc import Mapping
from typing import Any

import orjson

from qwen_service.chat import ChatRequest, Message, Sampling, ToolCall
from qwen_service.errors import ProtocolError

# A temperature of 0 became 1.0 in some builds. A choice among one is greedy at any temperature.
GREEDY = {"temperature": 0.01, "top_k": 1}


def request_body(model: str, request: ChatRequest, sampling: Sampling, max_tokens: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "max_tokens": max_tokens,
        "enable_thinking": bool(request.thinking),
        **_sampling(sampling),
    }
    if request.tools and request.tool_choice != "none":
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                },
            }
            for tool in request.tools
        ]
    return body


def _sampling(sampling: Sampling) -> dict[str, float]:
    if sampling.temperature == 0:
        return GREEDY
    named = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return {name: value for name, value in named.items() if value is not None}


def _message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class AxLlmStream:
    """The data of its server-sent events, one by one -> text as the model wrote it, tool calls included.

    `ended`: it said [DONE]. `finished`: it said so after a finish reason; without one, its time limit cut the reply.
    """

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, str]] = {}
        self.ended = False
        self.finished = False

    def feed(self, data: bytes) -> str:
        """Raises ProtocolError."""
        if data.strip() == b"[DONE]":
            self.ended = True
            return self._calls_as_text()
        try:
            chunk = orjson.loads(data.decode(errors="replace"))  # a token can end within a character
            choices = chunk.get("choices") or []
        except (orjson.JSONDecodeError, AttributeError) as error:
            raise ProtocolError(f"axllm sent something that is no chunk: {data[:200]!r}") from error
        if "error" in chunk:
            raise ProtocolError(f"axllm reports: {chunk['error']}")
        return "".join(map(self._of_choice, choices))

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
        """As Qwen writes them: our output parser is the only one to judge what is a call."""
        calls = (
            f'{{"name": {json.dumps(c["name"])}, "arguments": {c["arguments"] or "{}"}}}' for c in self._calls.values()
        )
        return "".join(f"\n<tool_call>\n{call}\n</tool_call>" for call in calls)
