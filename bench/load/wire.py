"""The two chat APIs as a client sees them: bodies to send, streams to read. No IO."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

Message = Mapping[str, str]
NANO = 1e-9


@dataclass(frozen=True, slots=True)
class Question:
    messages: Sequence[Message]
    max_tokens: int
    json_schema: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Answer:
    """What a stream said. `error` is empty when it came to its proper end."""

    token_times: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    queue: float | None = None
    finish: str = ""
    complete: bool = False
    error: str = ""


class Wire(ABC):
    """One API. `read` takes the parts of a body with their arrival times."""

    name: str
    path: str

    @abstractmethod
    def body(self, model: str, question: Question) -> dict[str, Any]: ...

    @abstractmethod
    def take(self, line: bytes, arrived: float, answer: Answer) -> None:
        """Put what one line of the stream says into `answer`."""

    def read(self, parts: Iterable[tuple[float, bytes]]) -> Answer:
        answer = Answer()
        for arrived, line in _lines(parts):
            try:
                self.take(line, arrived, answer)
            except (orjson.JSONDecodeError, AttributeError, TypeError, KeyError, IndexError):
                answer.error = f"not understood: {line[:80]!r}"
                break
        if not answer.complete and not answer.error:
            answer.error = "the stream ended without its end mark"
        return answer


class OpenAIWire(Wire):
    name = "openai"
    path = "/v1/chat/completions"

    def body(self, model: str, question: Question) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": model,
            "messages": list(question.messages),
            "max_tokens": question.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if question.json_schema is not None:
            schema = {"name": "answer", "schema": question.json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def take(self, line: bytes, arrived: float, answer: Answer) -> None:
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            answer.complete = True
            return
        chunk = orjson.loads(data)
        if "error" in chunk:
            answer.error = _message_of(chunk)
        for choice in chunk.get("choices") or ():
            self._choice(choice, arrived, answer)
        if usage := chunk.get("usage"):
            answer.prompt_tokens = usage.get("prompt_tokens")
            answer.completion_tokens = usage.get("completion_tokens")
            answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")

    def _choice(self, choice: dict[str, Any], arrived: float, answer: Answer) -> None:
        delta = choice.get("delta") or {}
        if delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"):
            answer.token_times.append(arrived)
            answer.text += delta.get("content") or ""
        answer.finish = choice.get("finish_reason") or answer.finish


class OllamaWire(Wire):
    name = "ollama"
    path = "/api/chat"

    def body(self, model: str, question: Question) -> dict[str, Any]:
        options = {"num_predict": question.max_tokens, "temperature": 0}
        body = {"model": model, "messages": list(question.messages), "stream": True, "options": options}
        return body | ({"format": question.json_schema} if question.json_schema is not None else {})

    def take(self, line: bytes, arrived: float, answer: Answer) -> None:
        chunk = orjson.loads(line)
        if "error" in chunk:
            answer.error = _message_of(chunk)
            return
        message = chunk.get("message") or {}
        if message.get("content") or message.get("thinking") or message.get("tool_calls"):
            answer.token_times.append(arrived)
            answer.text += message.get("content") or ""
        if chunk.get("done"):
            self._end(chunk, answer)

    def _end(self, chunk: dict[str, Any], answer: Answer) -> None:
        answer.complete = True
        answer.finish = chunk.get("done_reason") or ""
        answer.prompt_tokens = chunk.get("prompt_eval_count")
        answer.completion_tokens = chunk.get("eval_count")
        if "total_duration" in chunk:
            worked = sum(chunk.get(f"{part}_duration", 0) for part in ("load", "prompt_eval", "eval"))
            answer.queue = max(0.0, (chunk["total_duration"] - worked) * NANO)


WIRES: Mapping[str, Wire] = {wire.name: wire for wire in (OpenAIWire(), OllamaWire())}


def error_in(body: bytes, status: int) -> str:
    """Of an answer that is not 200."""
    try:
        return f"{status}: {_message_of(orjson.loads(body))}"
    except (orjson.JSONDecodeError, AttributeError, TypeError):
        return f"status {status}"


def _message_of(content: dict[str, Any]) -> str:
    error = content.get("error")
    return str(error.get("message")) if isinstance(error, dict) else str(error or content)


def _lines(parts: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Lines that are not empty, each with the time at which its end arrived."""
    held = b""
    arrived = 0.0
    for arrived, part in parts:
        *lines, held = (held + part).split(b"\n")
        yield from ((arrived, line.strip()) for line in lines if line.strip())
    if held.strip():
        yield arrived, held.strip()
