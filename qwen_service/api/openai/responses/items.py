"""Turns events into output items, and into the stream's events about them. At most one item is open at a time."""

from collections.abc import Iterator
from typing import Any, Literal

from qwen_service.api.openai.response import logprob_object
from qwen_service.chat import ReasoningDelta, TextDelta, ToolCall

Fields = dict[str, Any]
Told = tuple[str, Fields]  # the type of a stream's event without "response.", and its fields
Status = Literal["completed", "incomplete"]


class _Message:
    """An item with text of the reply."""

    def __init__(self, item_id: str, index: int) -> None:
        self.item: Fields = {
            "id": f"msg_{item_id}",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        self._place = {"item_id": self.item["id"], "output_index": index, "content_index": 0}
        self._text: list[str] = []
        self._logprobs: list[Fields] = []

    def open(self) -> Iterator[Told]:
        yield "content_part.added", {**self._place, "part": _output_text("", [])}

    def add(self, event: TextDelta) -> Iterator[Told]:
        logprobs = [logprob_object(entry) for entry in event.logprobs]
        self._text.append(event.text)
        self._logprobs += logprobs
        yield "output_text.delta", {**self._place, "delta": event.text, "logprobs": logprobs}

    def close(self) -> Iterator[Told]:
        text = "".join(self._text)
        part = _output_text(text, self._logprobs)
        self.item["content"] = [part]
        yield "output_text.done", {**self._place, "text": text, "logprobs": self._logprobs}
        yield "content_part.done", {**self._place, "part": part}


class _Reasoning:
    """An item with the model's thoughts, sent as the summary, because clients show the summary only."""

    def __init__(self, item_id: str, index: int) -> None:
        self.item: Fields = {
            "id": f"rs_{item_id}",
            "type": "reasoning",
            "status": "in_progress",
            "summary": [],
            "encrypted_content": None,
        }
        self._place = {"item_id": self.item["id"], "output_index": index, "summary_index": 0}
        self._text: list[str] = []

    def open(self) -> Iterator[Told]:
        yield "reasoning_summary_part.added", {**self._place, "part": {"type": "summary_text", "text": ""}}

    def add(self, event: ReasoningDelta) -> Iterator[Told]:
        self._text.append(event.text)
        yield "reasoning_summary_text.delta", {**self._place, "delta": event.text}

    def close(self) -> Iterator[Told]:
        text = "".join(self._text)
        part = {"type": "summary_text", "text": text}
        self.item["summary"] = [part]
        yield "reasoning_summary_text.done", {**self._place, "text": text}
        yield "reasoning_summary_part.done", {**self._place, "part": part}


class OutputItems:
    """The items of one response. `done` has the complete ones, in order."""

    def __init__(self, request_id: str) -> None:
        self._id = request_id
        self._open: _Message | _Reasoning | None = None
        self.done: list[Fields] = []

    @property
    def text(self) -> str:
        """The text of all messages."""
        return "".join(part["text"] for item in self.done if item["type"] == "message" for part in item["content"])

    def add(self, event: TextDelta | ReasoningDelta | ToolCall) -> Iterator[Told]:
        match event:
            case ToolCall():
                yield from self.close("completed")
                yield from self._call(event)
            case TextDelta(text="") | ReasoningDelta(text=""):
                pass
            case TextDelta():
                if not isinstance(self._open, _Message):
                    yield from self._begin(_Message)
                assert isinstance(self._open, _Message)
                yield from self._open.add(event)
            case ReasoningDelta():
                if not isinstance(self._open, _Reasoning):
                    yield from self._begin(_Reasoning)
                assert isinstance(self._open, _Reasoning)
                yield from self._open.add(event)

    def close(self, status: Status) -> Iterator[Told]:
        """Close the open item, if there is one."""
        if self._open is None:
            return
        opened, self._open = self._open, None
        yield from opened.close()
        opened.item["status"] = status
        yield from self._finish(opened.item)

    def _begin(self, kind: type[_Message] | type[_Reasoning]) -> Iterator[Told]:
        yield from self.close("completed")
        self._open = opened = kind(self._next_id(), len(self.done))
        yield "output_item.added", {"output_index": len(self.done), "item": dict(opened.item)}
        yield from opened.open()

    def _call(self, call: ToolCall) -> Iterator[Told]:
        index = len(self.done)
        item = {
            "id": f"fc_{self._next_id()}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
        }
        place = {"item_id": item["id"], "output_index": index}
        yield "output_item.added", {"output_index": index, "item": item}
        yield "function_call_arguments.delta", {**place, "delta": call.arguments}
        yield "function_call_arguments.done", {**place, "name": call.name, "arguments": call.arguments}
        yield from self._finish({**item, "status": "completed", "arguments": call.arguments})

    def _finish(self, item: Fields) -> Iterator[Told]:
        self.done.append(item)
        yield "output_item.done", {"output_index": len(self.done) - 1, "item": item}

    def _next_id(self) -> str:
        return f"{self._id}_{len(self.done)}"


def _output_text(text: str, logprobs: list[Fields]) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
