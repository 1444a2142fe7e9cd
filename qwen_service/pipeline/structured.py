"""Replies of a promised form: JSON of a schema, calls that were required. Kept, or an error; never a false 200.

Where the engine can, a grammar enforces the form while the reply streams. Elsewhere it is asked for in the system
message, the reply is held back until it is checked, and a faulty one goes back once with what is wrong about it.
A reply that the token limit or the client's own stop string cut is what it is, and says so in its finish reason.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import fields, replace

from qwen_service.chat import ChatRequest, Event, Finished, NamedTool, Timings, Usage
from qwen_service.errors import InvalidOutput, InvalidRequest, PromptTooLong, Unsupported
from qwen_service.pipeline.structured_prompt import ask, ask_again
from qwen_service.pipeline.structured_reply import Reply, fault_of, forced_tools
from qwen_service.runtime import Capabilities
from qwen_service.text.engine_schema import guided
from qwen_service.text.grammar import reply_grammar
from qwen_service.text.json_schema import check_enforceable
from qwen_service.text.output_format import OutputFormat

Stream = Callable[[ChatRequest], AsyncGenerator[Event, None]]


def structured(
    request: ChatRequest, stream: Stream, *, output_format: OutputFormat, capabilities: Capabilities
) -> AsyncGenerator[Event, None]:
    """The events of `stream`, which may be called again, held to the form that the request demands."""
    if request.tool_choice == "none":
        request = replace(request, tools=())  # a model that does not see tools calls none
    _check(request, output_format)
    if not (request.response_format or forced_tools(request)):
        return stream(request)
    enforceable = constrained(request, output_format)
    if capabilities.grammars or (capabilities.constrained_output and enforceable.sampling.grammar is None):
        return _enforced(enforceable, stream)
    return _requested(request, stream)


def as_rendered(request: ChatRequest, *, output_format: OutputFormat, capabilities: Capabilities) -> ChatRequest:
    """The request whose prompt structured() gives to the engine first."""
    if request.tool_choice == "none":
        request = replace(request, tools=())
    _check(request, output_format)
    if not (request.response_format or forced_tools(request)):
        return request
    enforceable = constrained(request, output_format)
    if capabilities.grammars or (capabilities.constrained_output and enforceable.sampling.grammar is None):
        return enforceable
    return ask(request)


def _check(request: ChatRequest, output_format: OutputFormat) -> None:
    choice = request.tool_choice
    if isinstance(choice, NamedTool) and not forced_tools(request):
        raise InvalidRequest(f"tool_choice names {choice.name!r}, which is not among the tools.", param="tool_choice")
    if choice == "required" and not request.tools:
        raise InvalidRequest("tool_choice is 'required' and there are no tools.", param="tool_choice")
    if forced_tools(request) and output_format.tool_call is None:
        raise Unsupported("This model has no format for calling tools.", param="tool_choice")
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
    reply = Reply()
    async with aclosing(stream(request)) as events:
        async for event in events:
            if reply.add(event) and isinstance(event, Finished):
                _demand(reply, request)
            yield event


async def _requested(request: ChatRequest, stream: Stream) -> AsyncGenerator[Event, None]:
    asked, reply = ask(request), Reply()
    async with aclosing(_collect(stream(asked), reply)) as live:
        async for event in live:
            yield event
    if fault := fault_of(reply, request):
        reply = await _second_try(stream(ask_again(asked, reply, fault)), reply, request)
    for event in reply.events:
        yield event
    if reply.finished:
        yield reply.finished


async def _collect(events: AsyncGenerator[Event, None], reply: Reply) -> AsyncGenerator[Event, None]:
    """Fills the reply; yields what is not a part of it."""
    async with aclosing(events):
        async for event in events:
            if not reply.add(event):
                yield event
    reply.unfence()


async def _second_try(events: AsyncGenerator[Event, None], first: Reply, request: ChatRequest) -> Reply:
    second = Reply()
    try:
        async with aclosing(_collect(events, second)) as live:
            async for _ in live:
                pass
    except PromptTooLong as error:
        raise InvalidOutput(
            f"The reply was wrong, and the context has no room to try again. {error.message}"
        ) from error
    _demand(second, request)
    if first.finished and second.finished:
        second.finished = _sum(first.finished, second.finished)
    return second


def _demand(reply: Reply, request: ChatRequest) -> None:
    if fault := fault_of(reply, request):
        raise InvalidOutput(f"The model's reply does not have the form that was asked for: {fault}.")


def _sum(first: Finished, second: Finished) -> Finished:
    """Of both rounds, because both were computed."""
    usage = Usage(*(getattr(first.usage, f.name) + getattr(second.usage, f.name) for f in fields(Usage)))
    timings = Timings(*(getattr(first.timings, f.name) + getattr(second.timings, f.name) for f in fields(Timings)))
    return replace(second, usage=usage, timings=timings)
