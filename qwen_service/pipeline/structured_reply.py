"""One whole reply, and whether it has the form that its request demanded."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson

from qwen_service.chat import (
    ChatRequest,
    Event,
    Finished,
    Message,
    NamedTool,
    ReasoningDelta,
    Started,
    TextDelta,
    Tool,
    ToolCall,
)
from qwen_service.text.json_schema import first_error, json_error

_FENCED = re.compile(r"\s*```(?:json)?\s*\n(?P<inner>.*?)\n?\s*```\s*", re.DOTALL)


@dataclass(slots=True)
class Reply:
    events: list[TextDelta | ToolCall] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Event) -> bool:
        """Whether it is a part of what is checked."""
        match event:
            case TextDelta() | ToolCall():
                self.events.append(event)
            case Finished():
                self.finished = event
            case Started() | ReasoningDelta():
                return False
        return True

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(event for event in self.events if isinstance(event, ToolCall))

    def message(self) -> Message:
        return Message("assistant", self.text, tool_calls=self.calls)

    def unfence(self) -> None:
        """Take off the code fence that models put around JSON when nothing but a prompt tells them not to."""
        match = _FENCED.fullmatch(self.text)
        if match and not self.calls:
            self.events = [TextDelta(match["inner"])]


def forced_tools(request: ChatRequest) -> tuple[Tool, ...]:
    """Those of which one must be called; none when the model is free."""
    if isinstance(request.tool_choice, NamedTool):
        return tuple(tool for tool in request.tools if tool.name == request.tool_choice.name)
    return request.tools if request.tool_choice == "required" else ()


def fault_of(reply: Reply, request: ChatRequest) -> str | None:
    """What is wrong with the reply, in words for the model that wrote it; None when it keeps its promise.

    A reply that the token limit or the client's own stop string cut promises nothing.
    """
    if request.stop or reply.finished is None or reply.finished.reason == "length":
        return None
    if forced := forced_tools(request):
        return _fault_of_calls(reply.calls, forced)
    if request.response_format and not reply.calls:
        return json_error(reply.text, request.response_format.schema)
    return None


def _fault_of_calls(calls: Iterable[ToolCall], tools: Iterable[Tool]) -> str | None:
    known = {tool.name: tool for tool in tools}
    calls = tuple(calls)
    if not calls:
        return f"it calls none of these functions: {', '.join(known)}"
    for call in calls:
        if call.name not in known:
            return f"it calls {call.name!r}, and may call only: {', '.join(known)}"
        if error := first_error(known[call.name].parameters, orjson.loads(call.arguments)):
            return f"the arguments of {call.name} are wrong: {error}"
    return None
