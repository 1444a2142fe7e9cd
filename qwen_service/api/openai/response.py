"""Turns events into OpenAI's chat.completion objects and chunks."""

import time
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from qwen_service.api.reply import ReplyHeaders
from qwen_service.api.streaming import Events
from qwen_service.chat import Event, Finished, ReasoningDelta, Started, TextDelta, TokenLogprob, ToolCall, Usage

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class _Choice:
    """Collects one reply for a response that does not stream."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Event) -> None:
        match event:
            case TextDelta():
                self.text.append(event.text)
                self.logprobs += event.logprobs
            case ReasoningDelta():
                self.reasoning.append(event.text)
            case ToolCall():
                self.calls.append(event)
            case Finished():
                self.finished = event
            case Started():
                pass


async def collect(events: Events, count: int, headers: ReplyHeaders) -> tuple[list[_Choice], Usage]:
    replies = [_Choice() for _ in range(count)]
    async for index, event in events:
        if isinstance(event, Started):
            headers.started = event
        replies[index].add(event)
    usages = [reply.finished.usage for reply in replies if reply.finished]
    return replies, total(usages, prompts=usages[:1])


def chat_completion(
    request_id: str, model: str, replies: list[_Choice], usage: Usage, *, logprobs: bool
) -> dict[str, Any]:
    return {
        "id": request_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": index,
                "message": _message(reply),
                "logprobs": _logprobs(reply.logprobs) if logprobs else None,
                "finish_reason": reply.finished.reason if reply.finished else None,
            }
            for index, reply in enumerate(replies)
        ],
        "usage": usage_object(usage),
    }


def _message(reply: _Choice) -> dict[str, Any]:
    text = "".join(reply.text)
    content = text if text or not reply.calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if reply.reasoning:
        message["reasoning_content"] = "".join(reply.reasoning)
    if reply.calls:
        message["tool_calls"] = [call_object(call) for call in reply.calls]
    return message


class ChatChunks:
    """The chunks of one stream, all with the same id, created and model."""

    def __init__(
        self, request_id: str, count: int, *, include_usage: bool, logprobs: bool, headers: ReplyHeaders
    ) -> None:
        self._id = request_id
        self._created = int(time.time())
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._headers = headers
        self._greeted = [False] * count  # per choice: whether its role has been sent
        self._calls = [0] * count
        self._usages: list[Usage] = []
        self._model = ""
        self._head = b""

    async def encode(self, events: Events) -> AsyncGenerator[bytes, None]:
        async for index, event in events:
            match event:
                case TextDelta():
                    yield self._text(index, event)
                case ReasoningDelta():
                    yield self._greeting(index) + self._delta(index, {"reasoning_content": event.text})
                case ToolCall():
                    yield self._greeting(index) + self._call(index, event)
                case Finished():
                    self._usages.append(event.usage)
                    yield self._greeting(index) + self._delta(index, {}, event.reason)
                case Started():
                    self._start(event)
        if self._include_usage:
            yield self._usage()
        yield DONE

    def _start(self, event: Started) -> None:
        self._headers.started = self._headers.started or event
        self._model = self._model or event.model
        fields = {"id": self._id, "object": "chat.completion.chunk", "created": self._created, "model": self._model}
        self._head = b"data: " + orjson.dumps(fields)[:-1]

    def _text(self, index: int, event: TextDelta) -> bytes:
        if self._logprobs:
            entries = _logprobs(event.logprobs)
            return self._greeting(index) + self._delta(index, {"content": event.text}, logprobs=entries)
        # The path of nearly every token: only the text is encoded, the rest is prepared.
        chunk = b'%b,"choices":[{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}]%b}\n\n' % (
            self._head,
            index,
            orjson.dumps(event.text),
            self._usage_field,
        )
        return chunk if self._greeted[index] else self._greeting(index) + chunk

    @property
    def _usage_field(self) -> bytes:
        return b',"usage":null' if self._include_usage else b""

    def _greeting(self, index: int) -> bytes:
        if self._greeted[index]:
            return b""
        self._greeted[index] = True
        return self._delta(index, {"role": "assistant", "content": ""})

    def _call(self, index: int, call: ToolCall) -> bytes:
        position = self._calls[index]
        self._calls[index] += 1
        return self._delta(index, {"tool_calls": [{"index": position, **call_object(call)}]})

    def _delta(
        self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head + b',"choices":' + orjson.dumps([choice]) + self._usage_field + b"}\n\n"

    def _usage(self) -> bytes:
        usage = usage_object(total(self._usages, prompts=self._usages[:1]))
        return self._head + b',"choices":[],"usage":' + orjson.dumps(usage) + b"}\n\n"


def call_object(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def total(usages: Collection[Usage], *, prompts: Collection[Usage]) -> Usage:
    """Add up the usage of all choices. A prompt counts once, as OpenAI counts it: by its choice in `prompts`."""
    return Usage(
        sum(usage.prompt_tokens for usage in prompts),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.cached_tokens for usage in prompts),
        sum(usage.reasoning_tokens for usage in usages),
    )


def _logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": [logprob_object(entry) for entry in entries], "refusal": None}


def logprob_object(entry: TokenLogprob) -> dict[str, Any]:
    return {**_logprob_fields(entry), "top_logprobs": [_logprob_fields(other) for other in entry.top]}


def _logprob_fields(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": list(entry.token_bytes)}
