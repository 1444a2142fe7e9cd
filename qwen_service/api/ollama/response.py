"""Turns events into Ollama's objects: one JSON line for each, or one object at the end. Durations are in nanoseconds."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import orjson

from qwen_service.api.reply import ReplyHeaders
from qwen_service.api.streaming import Events
from qwen_service.chat import Finished, ReasoningDelta, Started, TextDelta, TokenLogprob, ToolCall
from qwen_service.install.progress import Progress


class Reply(ABC):
    """The reply to one request. `model` is the name that the client used."""

    def __init__(self, model: str, headers: ReplyHeaders, *, logprobs: bool = False) -> None:
        self._model = model
        self._headers = headers
        self._logprobs = logprobs
        self._began = time.monotonic()
        self._calls = 0

    @abstractmethod
    def part(self, text: str = "", thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """The fields for one piece of the reply."""

    def end(self, finished: Finished) -> dict[str, Any]:
        """Further fields for the last object."""
        return timings(finished, time.monotonic() - self._began)

    async def lines(self, events: Events) -> AsyncGenerator[bytes, None]:
        async for _, event in events:
            match event:
                case TextDelta():
                    yield self._line(self.part(event.text) | self._logprob_fields(event.logprobs))
                case ReasoningDelta():
                    yield self._line(self.part(thinking=event.text))
                case ToolCall():
                    yield self._line(self.part(calls=[self._call(event)]))
                case Finished():
                    yield self._line(self.part(), self.end(event))
                case Started():
                    self._headers.started = event

    async def whole(self, events: Events) -> dict[str, Any]:
        text, thinking = list[str](), list[str]()
        calls, logprobs = list[dict[str, Any]](), list[TokenLogprob]()
        end: dict[str, Any] = {}
        async for _, event in events:
            match event:
                case TextDelta():
                    text.append(event.text)
                    logprobs += event.logprobs
                case ReasoningDelta():
                    thinking.append(event.text)
                case ToolCall():
                    calls.append(self._call(event))
                case Finished():
                    end = self.end(event)
                case Started():
                    self._headers.started = event
        part = self.part("".join(text), "".join(thinking), calls or None)
        return self._object(part | self._logprob_fields(tuple(logprobs)), end)

    def _line(self, part: dict[str, Any], end: dict[str, Any] | None = None) -> bytes:
        return orjson.dumps(self._object(part, end), option=orjson.OPT_APPEND_NEWLINE)

    def _object(self, part: dict[str, Any], end: dict[str, Any] | None) -> dict[str, Any]:
        return {"model": self._model, "created_at": now(), **part, "done": end is not None, **(end or {})}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        function = {"index": self._calls, "name": call.name, "arguments": orjson.loads(call.arguments)}
        self._calls += 1
        return {"id": call.id, "function": function}

    def _logprob_fields(self, logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        if not self._logprobs:
            return {}
        return {"logprobs": [_logprob(entry) | {"top_logprobs": list(map(_logprob, entry.top))} for entry in logprobs]}


class ChatReply(Reply):
    def part(self, text: str = "", thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class GenerateReply(Reply):
    """The reply of /api/generate. `context`: whether to give the client the conversation's ids to send back; not in raw mode."""

    def __init__(self, model: str, headers: ReplyHeaders, *, logprobs: bool = False, context: bool = True) -> None:
        super().__init__(model, headers, logprobs=logprobs)
        self._context = context

    def part(self, text: str = "", thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        del calls  # /api/generate takes no tools
        return {"response": text} | ({"thinking": thinking} if thinking else {})

    def end(self, finished: Finished) -> dict[str, Any]:
        context = {"context": finished.token_ids} if self._context and finished.token_ids else {}
        return super().end(finished) | context


async def pull_lines(reports: AsyncGenerator[str | Progress, None]) -> AsyncGenerator[bytes, None]:
    async for report in reports:
        if isinstance(report, str):
            yield _status_line({"status": report})
        else:
            figures = {"digest": report.action, "total": report.total_bytes, "completed": report.bytes}
            yield _status_line({"status": report.action} | figures)
    yield _status_line({"status": "success"})


def _status_line(status: dict[str, Any]) -> bytes:
    return orjson.dumps(status, option=orjson.OPT_APPEND_NEWLINE)


def timings(finished: Finished, total: float) -> dict[str, Any]:
    usage, timings = finished.usage, finished.timings
    return {
        "done_reason": "length" if finished.reason == "length" else "stop",
        "total_duration": _nanoseconds(total),
        "load_duration": _nanoseconds(timings.load + timings.queue),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(timings.prefill),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(timings.generation),
    }


def now() -> str:
    return moment(time.time())


def moment(seconds: float) -> str:
    """Write a time in seconds since 1970 as Ollama does."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": list(entry.token_bytes)}
