from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest

from qwen_service.chat import (
    ChatRequest,
    Event,
    Finished,
    FinishReason,
    JsonFormat,
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
from qwen_service.pipeline.structured import structured
from qwen_service.runtime import Capabilities
from qwen_service.text.output_parser import OutputFormat

QWEN = OutputFormat(("<think>", "</think>"), ("<tool_call>", "</tool_call>"))
GRAMMAR = Capabilities(frozenset(), constrained_output=True, grammars=True)
SCHEMA_ONLY = Capabilities(frozenset(), constrained_output=True)
NO_GRAMMAR = Capabilities(frozenset())
AGE = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
ADD = Tool("add", parameters=AGE)
NOW = Tool("now")
USER = Message("user", "How old is she?")


@dataclass
class Replies:
    """A stream that plays one reply after the other and keeps what it was asked."""

    replies: Sequence[list[Event] | Exception]
    asked: list[ChatRequest] = field(default_factory=list)
    closed: int = 0

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        reply = self.replies[len(self.asked) - 1]
        try:
            if isinstance(reply, Exception):
                raise reply
            yield Started("m")
            for event in reply:
                yield event
        finally:
            self.closed += 1


def said(text: str, reason: FinishReason = "stop") -> list[Event]:
    return [TextDelta(text), Finished(reason, Usage(10, 5), Timings(queue=1.0))]


def called(name: str, arguments: str = "{}") -> list[Event]:
    return [ToolCall("call_1", name, arguments), Finished("tool_calls", Usage(10, 5))]


async def run(replies: Replies, capabilities: Capabilities = NO_GRAMMAR, **request: Any) -> list[Event]:
    asked = ChatRequest("r", **({"messages": (USER,)} | request))
    stream = structured(asked, replies, output_format=QWEN, capabilities=capabilities)
    async with aclosing(stream) as events:
        return [event async for event in events]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_a_request_without_demands_is_not_touched() -> None:
    replies = Replies([said("hi")])
    request = ChatRequest("r", messages=(USER,), tools=(NOW,))
    stream = structured(request, replies, output_format=QWEN, capabilities=NO_GRAMMAR)
    assert [event async for event in stream] == [Started("m"), *said("hi")]
    assert replies.asked == [request]


async def test_tools_that_must_not_be_called_are_not_shown() -> None:
    replies = Replies([said("hi")])
    await run(replies, tools=(NOW,), tool_choice="none")
    assert replies.asked[0].tools == ()


# Where the engine enforces


async def test_a_schema_goes_to_the_engine_and_the_reply_streams() -> None:
    replies = Replies([[TextDelta('{"age"'), TextDelta(": 3}"), Finished("stop", Usage())]])
    events = await run(replies, GRAMMAR, response_format=JsonFormat(AGE))
    assert events == [Started("m"), TextDelta('{"age"'), TextDelta(": 3}"), Finished("stop", Usage())]
    schema = replies.asked[0].sampling.json_schema
    assert schema is not None
    assert schema["required"] == ["age"]
    assert replies.asked[0].messages == (USER,)


async def test_json_without_a_schema_is_an_object() -> None:
    replies = Replies([said("{}")])
    await run(replies, GRAMMAR, response_format=JsonFormat())
    schema = replies.asked[0].sampling.json_schema
    assert schema is not None
    assert schema["type"] == "object"


async def test_what_the_grammar_could_not_say_is_checked_at_the_end() -> None:
    replies = Replies([said('{"age": 3}')])
    with pytest.raises(InvalidOutput, match="should not be valid"):
        await run(replies, GRAMMAR, response_format=JsonFormat({**AGE, "not": {"required": ["age"]}}))
    assert replies.closed == 1


async def test_required_is_a_grammar_of_all_tools_and_named_of_one() -> None:
    replies = Replies([called("now"), called("now")])
    await run(replies, GRAMMAR, tools=(ADD, NOW), tool_choice="required")
    await run(replies, GRAMMAR, tools=(ADD, NOW), tool_choice=NamedTool("now"))
    both, one = (str(request.sampling.grammar) for request in replies.asked)
    assert "add" in both
    assert "now" in both
    assert "add" not in one


async def test_tools_that_may_be_called_stay_possible_beside_a_format() -> None:
    replies = Replies([called("now")])
    await run(replies, GRAMMAR, tools=(NOW,), response_format=JsonFormat(AGE))
    grammar = str(replies.asked[0].sampling.grammar)
    assert "tool_0" in grammar
    assert "answer" in grammar


async def test_thinking_stays_possible_before_a_format() -> None:
    replies = Replies([said('{"age": 1}')])
    await run(replies, GRAMMAR, thinking=True, response_format=JsonFormat(AGE))
    assert "think?" in str(replies.asked[0].sampling.grammar)


async def test_an_engine_that_takes_schemas_only_is_asked_for_what_needs_a_grammar() -> None:
    replies = Replies([said('{"age": 1}'), called("now")])
    await run(replies, SCHEMA_ONLY, response_format=JsonFormat(AGE))
    await run(replies, SCHEMA_ONLY, tools=(NOW,), tool_choice="required")
    by_schema, by_prompt = replies.asked
    assert by_schema.sampling.json_schema is not None
    assert (by_prompt.sampling.json_schema, by_prompt.sampling.grammar) == (None, None)
    assert "Call now." in by_prompt.messages[0].content


# Where it is asked for


async def test_the_schema_is_asked_for_at_the_end_of_the_system_message() -> None:
    replies = Replies([said('{"age": 3}'), said('{"age": 3}')])
    await run(replies, response_format=JsonFormat(AGE))
    await run(replies, response_format=JsonFormat(AGE), messages=(Message("system", "Be kind."), USER))
    inserted, extended = (request.messages[0] for request in replies.asked)
    assert inserted.role == "system"
    assert '"required": ["age"]' in inserted.content
    assert extended.content.startswith("Be kind.\n\n")
    assert [len(request.messages) for request in replies.asked] == [2, 2]


async def test_a_good_reply_comes_out_as_it_was() -> None:
    reply: list[Event] = [ReasoningDelta("hm"), *said(' {"age": 3}')]
    assert await run(Replies([reply]), response_format=JsonFormat(AGE)) == [Started("m"), *reply]


async def test_a_code_fence_is_taken_off() -> None:
    events = await run(Replies([said('```json\n{"age": 3}\n```')]), response_format=JsonFormat(AGE))
    assert text_of(events) == '{"age": 3}'


async def test_a_faulty_reply_goes_back_once_with_what_is_wrong() -> None:
    replies = Replies([said('{"age": "old"}'), said('{"age": 3}')])
    events = await run(replies, response_format=JsonFormat(AGE))
    assert text_of(events) == '{"age": 3}'
    *_, reply, complaint = replies.asked[1].messages
    assert reply == Message("assistant", '{"age": "old"}')
    assert "$.age: 'old' is not of type 'integer'" in complaint.content
    assert [type(event) for event in events] == [Started, TextDelta, Finished]


async def test_both_rounds_are_counted() -> None:
    events = await run(Replies([said("no"), said('{"age": 3}')]), response_format=JsonFormat(AGE))
    assert events[-1] == Finished("stop", Usage(20, 10), Timings(queue=2.0))


async def test_a_second_faulty_reply_is_an_error_and_nothing_of_it_goes_out() -> None:
    replies = Replies([said("no"), said("never")])
    request = ChatRequest("r", messages=(USER,), response_format=JsonFormat(AGE))
    stream = structured(request, replies, output_format=QWEN, capabilities=NO_GRAMMAR)
    assert await anext(stream) == Started("m")
    with pytest.raises(InvalidOutput, match="not JSON"):
        await anext(stream)
    assert replies.closed == 2


async def test_no_room_for_a_second_round_is_an_error_of_the_output() -> None:
    replies = Replies([said("no"), PromptTooLong("it has 1100 tokens")])
    with pytest.raises(InvalidOutput, match="1100"):
        await run(replies, response_format=JsonFormat(AGE))


@pytest.mark.parametrize("capabilities", [GRAMMAR, NO_GRAMMAR])
async def test_a_reply_cut_by_the_limit_is_what_it_is(capabilities: Capabilities) -> None:
    events = await run(Replies([said('{"age', "length")]), capabilities, response_format=JsonFormat(AGE))
    assert events[1:] == said('{"age', "length")


async def test_a_reply_cut_by_the_clients_own_stop_string_is_what_it_is() -> None:
    events = await run(Replies([said('{"age')]), GRAMMAR, response_format=JsonFormat(AGE), stop=("}",))
    assert text_of(events) == '{"age'


async def test_a_required_call_that_is_missing_unknown_or_wrong_is_asked_for_again() -> None:
    for faulty, fault in (
        (said("It is noon."), "none of these functions: add, now"),
        (called("noon"), "'noon'"),
        (called("add", '{"age": "x"}'), "arguments of add are wrong: $.age"),
    ):
        replies = Replies([faulty, called("add", '{"age": 1}')])
        events = await run(replies, tools=(ADD, NOW), tool_choice="required")
        assert fault in replies.asked[1].messages[-1].content
        assert ToolCall("call_1", "add", '{"age": 1}') in events


async def test_a_raw_prompt_cannot_be_given_instructions() -> None:
    with pytest.raises(Unsupported):
        await run(Replies([]), messages=(), prompt="raw", response_format=JsonFormat())


async def test_leaving_closes_the_reply_that_is_being_generated() -> None:
    replies = Replies([[ReasoningDelta("hm"), *said("no")]])
    request = ChatRequest("r", messages=(USER,), response_format=JsonFormat())
    stream = structured(request, replies, output_format=QWEN, capabilities=NO_GRAMMAR)
    assert await anext(stream) == Started("m")
    await stream.aclose()
    assert replies.closed == 1


# What cannot be demanded


async def test_a_named_tool_must_be_among_the_tools() -> None:
    with pytest.raises(InvalidRequest, match="'later'"):
        await run(Replies([]), tools=(NOW,), tool_choice=NamedTool("later"))


async def test_required_needs_tools() -> None:
    with pytest.raises(InvalidRequest):
        await run(Replies([]), tool_choice="required")


async def test_a_model_without_a_format_for_calls_cannot_be_made_to_call() -> None:
    request = ChatRequest("r", messages=(USER,), tools=(NOW,), tool_choice="required")
    with pytest.raises(Unsupported):
        structured(request, Replies([]), output_format=OutputFormat(), capabilities=GRAMMAR)


async def test_a_schema_that_cannot_be_checked_is_refused_where_it_is_a_promise() -> None:
    with pytest.raises(Unsupported, match="patternProperties"):
        await run(Replies([]), response_format=JsonFormat({"patternProperties": {}}))
