"""Turns events into a response object, and into the stream of its events, numbered from 0."""

import math
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from qwen_service import errors
from qwen_service.api.openai.responses.items import Fields, OutputItems, Told
from qwen_service.api.openai.responses.wire import ResponsesBody
from qwen_service.api.reply import ReplyHeaders, sse
from qwen_service.api.streaming import Events
from qwen_service.chat import Event, Finished, Started, Usage

# class -> code of response.failed; others are server_error. Codex ends the turn at the first two, and waits for
# the time in the message at the third.
CODES: dict[type[errors.ServiceError], str] = {
    errors.PromptTooLong: "context_length_exceeded",
    errors.RequestError: "invalid_prompt",
    errors.Busy: "rate_limit_exceeded",
}


class ResponseEvents:
    """Builds one reply; the whole object and the stream are made from the same events."""

    def __init__(self, request_id: str, body: ResponsesBody, headers: ReplyHeaders) -> None:
        self._headers = headers
        self._items = OutputItems(request_id.removeprefix("resp_"))
        self._response = _beginning(request_id, body)
        self._number = 0

    async def whole(self, events: Events) -> Fields:
        async for _, event in events:
            for _ in self._told(event):
                pass
        return {**self._response, "output_text": self._items.text}

    async def encode(self, events: Events) -> AsyncGenerator[bytes, None]:
        async for _, event in events:
            for told in self._told(event):
                yield self._event(told)

    def failed(self, error: errors.ServiceError) -> bytes:
        """End a stream with an error. Typed clients need the first events of a stream, so those are sent if they were not yet."""
        begin = b"" if self._number else self._event(("created", {"response": dict(self._response)}))
        self._response |= {"status": "failed", "error": _error(error), "output": self._items.done}
        return begin + self._event(("failed", {"response": self._response}))

    def _told(self, event: Event) -> Iterator[Told]:
        match event:
            case Started():
                first, self._headers.started = self._headers.started is None, self._headers.started or event
                if first:
                    self._response["model"] = event.model
                    yield "created", {"response": dict(self._response)}
                    yield "in_progress", {"response": dict(self._response)}
            case Finished():
                yield from self._finish(event)
            case _:
                yield from self._items.add(event)

    def _finish(self, event: Finished) -> Iterator[Told]:
        cut = event.reason == "length"
        yield from self._items.close("incomplete" if cut else "completed")
        self._response |= {
            "status": "incomplete" if cut else "completed",
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._items.done,
            "usage": usage_object(event.usage),
        }
        yield self._response["status"], {"response": self._response}

    def _event(self, told: Told) -> bytes:
        kind, fields = f"response.{told[0]}", told[1]
        event = sse({"type": kind, "sequence_number": self._number, **fields}, kind)
        self._number += 1
        return event


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _beginning(request_id: str, body: ResponsesBody) -> Fields:
    """The fields that are known before generation: mostly those of the request."""
    tools = [tool.model_dump() for tool in body.tools or () if tool.type == "function"]
    reasoning = body.reasoning.model_dump() if body.reasoning is not None else {"effort": None, "summary": None}
    return {
        "id": request_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": body.model or "",
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": reasoning,
        "service_tier": "default",
        "store": False,
        "temperature": body.temperature,
        "text": {"format": _format(body)},
        "tool_choice": _choice(body),
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": body.truncation or "auto",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _format(body: ResponsesBody) -> Fields:
    if body.text is None or body.text.format is None:
        return {"type": "text"}
    return body.text.format.model_dump(by_alias=True, exclude_none=True)


def _choice(body: ResponsesBody) -> Any:
    if body.tool_choice is None or isinstance(body.tool_choice, str):
        return body.tool_choice or "auto"
    return body.tool_choice.model_dump(exclude_none=True)


def _error(error: errors.ServiceError) -> Fields:
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), "server_error")
    message = error.message
    if isinstance(error, errors.Busy):
        message += f" Please try again in {math.ceil(error.retry_after)}s."
    return {"code": code, "message": message}
