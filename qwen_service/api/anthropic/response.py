"""Events -> Anthropic's message objects and stream events."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import orjson

from qwen_service.api.reply import ReplyHeaders, sse
from qwen_service.api.streaming import Events
from qwen_service.chat import Finished, ReasoningDelta, Started, TextDelta, ToolCall, Usage
from qwen_service.engines.manager import ModelManager


async def message(request_id: str, events: Events, headers: ReplyHeaders) -> dict[str, Any]:
    """Make the message object of a whole reply."""
    blocks: list[dict[str, Any]] = []
    reply = _empty(request_id, "", Usage())
    async for _, event in events:
        match event:
            case Started():
                headers.started = headers.started or event
                reply["model"] = event.model
            case TextDelta() | ReasoningDelta():
                _extend(blocks, event)
            case ToolCall():
                blocks.append({**_opening(event), "input": orjson.Fragment(event.arguments)})
            case Finished():
                reply |= {**_ending(event), "usage": usage_object(event.usage)}
    return reply | {"content": [block for block in blocks if block.get("text") != ""]}


def _extend(blocks: list[dict[str, Any]], event: TextDelta | ReasoningDelta) -> None:
    opening = _opening(event)
    kind = opening["type"]
    if not blocks or blocks[-1]["type"] != kind:
        blocks.append(opening)
    blocks[-1][kind] += event.text


class MessageEvents:
    """The stream of one reply. At most one content block is open at a time."""

    def __init__(self, request_id: str, headers: ReplyHeaders) -> None:
        self._id = request_id
        self._headers = headers
        self._index = -1
        self._open = ""  # type of the open content block; empty: none is open

    async def encode(self, events: Events) -> AsyncGenerator[bytes, None]:
        started = False
        async for _, event in events:
            match event:
                case Started():
                    self._headers.started = self._headers.started or event
                    if not started:
                        started = True
                        opening = _empty(self._id, event.model, Usage(event.prompt_tokens))
                        yield _event("message_start", message=opening)
                case TextDelta(text="") | ReasoningDelta(text=""):
                    pass
                case TextDelta():
                    yield self._delta(event, {"type": "text_delta", "text": event.text})
                case ReasoningDelta():
                    yield self._delta(event, {"type": "thinking_delta", "thinking": event.text})
                case ToolCall():
                    yield self._close() + self._delta(
                        event, {"type": "input_json_delta", "partial_json": event.arguments}
                    )
                case Finished():
                    usage = usage_object(event.usage)
                    yield self._close() + _event("message_delta", delta=_ending(event), usage=usage)
        yield _event("message_stop")

    def _delta(self, event: TextDelta | ReasoningDelta | ToolCall, delta: dict[str, Any]) -> bytes:
        opening = _opening(event)
        begin = b""
        if opening["type"] != self._open:
            begin = self._close()
            self._index += 1
            self._open = opening["type"]
            begin += _event("content_block_start", index=self._index, content_block=opening)
        return begin + _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event("content_block_stop", index=self._index)


def usage_object(usage: Usage) -> dict[str, int]:
    """The usage object. As Anthropic counts, `input_tokens` leaves out the tokens that the KV cache held."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def model_list(models: ModelManager) -> dict[str, Any]:
    data = [
        {
            "type": "model",
            "id": model.name,
            "display_name": model.spec.title or model.name,
            "created_at": datetime.fromtimestamp(int(model.modified), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        for model in models.installed()
    ]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": first, "last_id": last}


def _empty(request_id: str, model: str, usage: Usage) -> dict[str, Any]:
    return {
        "id": request_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_object(usage),
    }


def _opening(event: TextDelta | ReasoningDelta | ToolCall) -> dict[str, Any]:
    match event:
        case TextDelta():
            return {"type": "text", "text": ""}
        case ReasoningDelta():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case ToolCall():
            return {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}


def _ending(event: Finished) -> dict[str, str | None]:
    if event.reason == "stop":
        reason = "end_turn" if event.stop_string is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": event.stop_string}
    return {"stop_reason": "max_tokens" if event.reason == "length" else "tool_use", "stop_sequence": None}


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)
