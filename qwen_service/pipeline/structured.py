"""Replies of a promised form: JSON of a schema, calls that were required. Kept, or an error; never a false 200.

Where the engine can, a grammar enforces the form while the reply streams. Elsewhere it is asked for in the system
message, the reply is held back until it is checked, and a faulty one goes back once with what is wrong about it.
A reply that the token limit or the client's own stop string cut is what it is, and says so in its finish reason.
"""

import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from typing import Literal

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
    Timings,
    Tool,
    ToolCall,
    Usage,
)
from qwen_service.errors import InvalidOutput, InvalidRequest, PromptTooLong, Unsupported
from qwen_service.runtime import Capabilities
from qwen_service.text.grammar import guided, reply_grammar
from qwen_service.text.json_schema import check_enforceable, first_error, json_error
from qwen_service.text.output_parser import OutputFormat

Stream = Callable[[ChatRequest], AsyncGenerator[Event, None]]
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(?P<inner>.*?)\n?\s*```\s*", re.DOTALL)


@dataclass(slots=True)
class HeldReply:
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


def structured(
    request: ChatRequest, stream: Stream, *, output_format: OutputFormat, capabilities: Capabilities
) -> AsyncGenerator[Event, None]:
    """The events of `stream`, which may be called again, held to the form that the request demands."""
    request, held_by = _prepared(request, output_format, capabilities)
    match held_by:
        case "grammar":
            return _enforced(request, stream)
        case "words":
            return _requested(request, stream)
        case _:
            return stream(request)


def as_rendered(request: ChatRequest, *, output_format: OutputFormat, capabilities: Capabilities) -> ChatRequest:
    """The request whose prompt structured() gives to the engine first."""
    request, held_by = _prepared(request, output_format, capabilities)
    return ask(request) if held_by == "words" else request


def _prepared(
    request: ChatRequest, output_format: OutputFormat, capabilities: Capabilities
) -> tuple[ChatRequest, Literal["nothing", "grammar", "words"]]:
    """The request, and what holds its reply to the form that it demands."""
    if request.tool_choice == "none":
        request = replace(request, tools=())  # a model that does not see tools calls none
    _check(request, output_format)
    if not (request.response_format or forced_tools(request)):
        return request, "nothing"
    enforceable = constrained(request, output_format)
    if capabilities.grammars or (capabilities.constrained_output and enforceable.sampling.grammar is None):
        return enforceable, "grammar"
    return request, "words"


def _check(request: ChatRequest, output_format: OutputFormat) -> None:
    choice = request.tool_choice
    if isinstance(choice, NamedTool) and not forced_tools(request):
        raise InvalidRequest(
            f"tool_choice names {choice.name!r}, but `tools` has no tool of that name.", param="tool_choice"
        )
    if choice == "required" and not request.tools:
        raise InvalidRequest("tool_choice is 'required', but `tools` is empty.", param="tool_choice")
    if forced_tools(request) and output_format.tool_call is None:
        raise Unsupported(
            "tool_choice demands a call, but this model has no format for calling tools.", param="tool_choice"
        )
    for tool in forced_tools(request):
        check_enforceable(tool.parameters, f"the parameters of {tool.name}")
    if request.response_format and request.response_format.schema is not None:
        check_enforceable(request.response_format.schema, "response_format")


def constrained(request: ChatRequest, output_format: OutputFormat) -> ChatRequest:
    """The request with the schema or grammar that the engine enforces."""
    tools = forced_tools(request)
    schema = None
    if request.response_format and not tools:
        tools = request.tools if request.tool_choice == "auto" and output_format.tool_call else ()
        schema = request.response_format.schema or {"type": "object"}
    thinking = output_format.reasoning if request.thinking else None
    if schema is not None and not (tools or thinking):
        return replace(request, sampling=replace(request.sampling, json_schema=guided(schema)))
    parallel = request.parallel_tool_calls
    grammar = reply_grammar(tools, output_format.tool_call, parallel=parallel, thinking=thinking, answer=schema)
    return replace(request, sampling=replace(request.sampling, grammar=grammar))


async def _enforced(request: ChatRequest, stream: Stream) -> AsyncGenerator[Event, None]:
    """Streams as it comes. The check at the end is for what a grammar cannot say."""
    reply = HeldReply()
    async with aclosing(stream(request)) as events:
        async for event in events:
            if reply.add(event) and isinstance(event, Finished):
                _demand(reply, request)
            yield event


async def _requested(request: ChatRequest, stream: Stream) -> AsyncGenerator[Event, None]:
    asked, reply = ask(request), HeldReply()
    async with aclosing(_collect(stream(asked), reply)) as live:
        async for event in live:
            yield event
    if fault := fault_of(reply, request):
        reply = await _second_try(stream(ask_again(asked, reply, fault)), reply, request)
    for event in reply.events:
        yield event
    if reply.finished:
        yield reply.finished


async def _collect(events: AsyncGenerator[Event, None], reply: HeldReply) -> AsyncGenerator[Event, None]:
    """Fill the reply; yield what is not a part of it."""
    async with aclosing(events):
        async for event in events:
            if not reply.add(event):
                yield event
    reply.unfence()


async def _second_try(events: AsyncGenerator[Event, None], first: HeldReply, request: ChatRequest) -> HeldReply:
    second = HeldReply()
    try:
        async with aclosing(_collect(events, second)) as live:
            async for _ in live:
                pass
    except PromptTooLong as error:
        raise InvalidOutput(
            f"The model's reply did not have the form that was asked for, and the context has no room for a second try. {error.message}"
        ) from error
    _demand(second, request)
    if first.finished and second.finished:
        second.finished = _sum(first.finished, second.finished)
    return second


def _demand(reply: HeldReply, request: ChatRequest) -> None:
    if fault := fault_of(reply, request):
        raise InvalidOutput(f"The model's reply does not have the form that was asked for: {fault}.")


def _sum(first: Finished, second: Finished) -> Finished:
    """Of both rounds, because both were computed."""
    usage = Usage(*(getattr(first.usage, f.name) + getattr(second.usage, f.name) for f in fields(Usage)))
    timings = Timings(*(getattr(first.timings, f.name) + getattr(second.timings, f.name) for f in fields(Timings)))
    return replace(second, usage=usage, timings=timings)


def ask(request: ChatRequest) -> ChatRequest:
    """The request with the instructions at the end of its system message."""
    if request.prompt is not None:
        raise Unsupported(
            "This model's engine cannot enforce a format on the reply to a raw prompt. Send messages instead.",
            param="response_format",
        )
    instructions = _call_instructions(request) or _json_instructions(request)
    first, *others = request.messages or (Message("system"),)
    if first.role != "system":
        return replace(request, messages=(Message("system", instructions), first, *others))
    system = replace(first, content=f"{first.content}\n\n{instructions}".lstrip())
    return replace(request, messages=(system, *others))


def ask_again(request: ChatRequest, reply: HeldReply, fault: str) -> ChatRequest:
    # Not from the user: the last user message is never trimmed away, and that must stay the question.
    complaint = Message("system", f"Your reply cannot be used: {fault}. Reply again, correctly, and with nothing else.")
    return replace(request, messages=(*request.messages, reply.message(), complaint))


def _call_instructions(request: ChatRequest) -> str:
    names = [tool.name for tool in forced_tools(request)]
    if not names:
        return ""
    return f"You must reply with a function call and no other text. Call {' or '.join(names)}."


def _json_instructions(request: ChatRequest) -> str:
    schema = request.response_format.schema if request.response_format else None
    instructions = "Reply with JSON only: no explanation and no code fence."
    if request.tools and request.tool_choice == "auto":
        instructions = f"Call a function, or else: {instructions}"
    if schema is None:
        return f"{instructions} It must be one JSON object."
    return f"{instructions} It must satisfy this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}"


def forced_tools(request: ChatRequest) -> tuple[Tool, ...]:
    """Those of which one must be called; none when the model is free."""
    if isinstance(request.tool_choice, NamedTool):
        return tuple(tool for tool in request.tools if tool.name == request.tool_choice.name)
    return request.tools if request.tool_choice == "required" else ()


def fault_of(reply: HeldReply, request: ChatRequest) -> str | None:
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
