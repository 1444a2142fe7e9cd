import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from qwen_service.api.openai import wire_reply
from qwen_service.api.openai.response import ChatChunks, chat_completion, collect
from qwen_service.api.openai.text_completion import TextCompletion
from qwen_service.api.reply import ReplyHeaders
from qwen_service.chat import Event, Finished, ReasoningDelta, Started, TextDelta, TokenLogprob, ToolCall, Usage

STARTED = Started("m", served_by="llamacpp")
CALL = ToolCall("call_1", "f", '{"a": 1}')
LOGPROB = TokenLogprob("Hi", b"Hi", -0.5, top=(TokenLogprob("Hi", b"Hi", -0.5), TokenLogprob("Ho", b"Ho", -1.5)))
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def end(reason: Any = "stop") -> Finished:
    return Finished(reason, Usage(5, 2, 3, 1))


def hold_to(answer: object, described: type[BaseModel], theirs: type[BaseModel]) -> None:
    """What /docs says of the answer, and what the package openai makes of it."""
    described.model_validate(answer, strict=True)
    theirs.model_validate(answer, strict=True)


async def coming(*events: Event | tuple[int, Event]) -> AsyncGenerator[tuple[int, Event], None]:
    for event in events:
        yield event if isinstance(event, tuple) else (0, event)


async def stream(*events: Any, count: int = 1, usage: bool = False, logprobs: bool = False) -> list[Any]:
    """What a client parses: a JSON object for each chunk, and the text of what is none."""
    chunks = ChatChunks("id1", count, include_usage=usage, logprobs=logprobs, headers=ReplyHeaders())
    parts = parsed([chunk async for chunk in chunks.encode(coming(*events))])
    for part in parts[:-1]:
        hold_to(part, wire_reply.ChatCompletionChunk, ChatCompletionChunk)
    return parts


def parsed(chunks: Sequence[bytes]) -> list[Any]:
    events = b"".join(chunks).decode().removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [data if (data := event.removeprefix("data: ")) == "[DONE]" else json.loads(data) for event in events]


def deltas(chunks: list[Any]) -> list[Any]:
    return [choice["delta"] for chunk in chunks[:-1] for choice in chunk["choices"]]


async def test_a_stream_is_a_role_then_text_then_an_empty_delta_with_the_reason_then_done() -> None:
    chunks = await stream(STARTED, TextDelta("Hi"), TextDelta(' "you"\n'), end())
    assert deltas(chunks) == [{"role": "assistant", "content": ""}, {"content": "Hi"}, {"content": ' "you"\n'}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1] == "[DONE]"


async def test_id_object_created_and_model_are_the_same_in_every_chunk() -> None:
    chunks = await stream(STARTED, TextDelta("Hi"), ReasoningDelta("hm"), CALL, end(), usage=True)
    heads = [{name: chunk[name] for name in ("id", "object", "created", "model")} for chunk in chunks[:-1]]
    assert heads == [
        {"id": "id1", "object": "chat.completion.chunk", "created": heads[0]["created"], "model": "m"}
    ] * len(heads)


async def test_the_fast_way_of_a_text_chunk_is_json_of_the_same_shape_as_the_slow_one() -> None:
    text = 'a "quote", \\ and \x00 \u2028 🐧 %b %d'
    fast = (await stream(STARTED, TextDelta(text), end()))[1]
    slow = (await stream(STARTED, TextDelta(text), end(), logprobs=True))[1]
    slow["choices"][0]["logprobs"] = None
    assert fast == slow | {"created": fast["created"]}
    assert list(fast) == list(slow)


async def test_usage_comes_in_a_last_chunk_without_choices_only_when_asked_for() -> None:
    asked = await stream(STARTED, TextDelta("Hi"), end(), usage=True)
    assert (asked[-2]["choices"], asked[-2]["usage"]) == ([], USAGE)
    assert all(chunk["usage"] is None for chunk in asked[:-2])
    silent = await stream(STARTED, TextDelta("Hi"), end())
    assert not any("usage" in chunk for chunk in silent[:-1])


async def test_calls_are_numbered_and_their_arguments_are_text() -> None:
    chunks = await stream(STARTED, CALL, ToolCall("call_2", "g"), end("tool_calls"))
    first, second = (delta["tool_calls"][0] for delta in deltas(chunks)[1:3])
    assert first == {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert (second["index"], second["id"], second["function"]) == (1, "call_2", {"name": "g", "arguments": "{}"})
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_thoughts_are_reasoning_content_and_never_content() -> None:
    chunks = await stream(STARTED, ReasoningDelta("hm"), TextDelta("Yes"), end())
    assert deltas(chunks) == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "Yes"},
        {},
    ]


async def test_each_of_several_choices_has_its_role_and_its_end() -> None:
    chunks = await stream(
        (0, STARTED), (1, STARTED), (1, TextDelta("b")), (0, TextDelta("a")), (1, end()), (0, end("length")), count=2, usage=True
    )  # fmt: skip
    choices = [choice for chunk in chunks[:-2] for choice in chunk["choices"]]
    for index, text, reason in ((0, "a", "length"), (1, "b", "stop")):
        own = [choice for choice in choices if choice["index"] == index]
        assert [choice["delta"] for choice in own] == [{"role": "assistant", "content": ""}, {"content": text}, {}]
        assert own[-1]["finish_reason"] == reason
    assert chunks[-2]["usage"]["prompt_tokens"] == 5  # one prompt, counted once
    assert chunks[-2]["usage"]["completion_tokens"] == 4


async def test_a_reply_of_no_text_still_has_its_role() -> None:
    assert deltas(await stream(STARTED, end())) == [{"role": "assistant", "content": ""}, {}]


async def test_logprobs_of_a_chunk_are_openais() -> None:
    (_, chunk, *_) = await stream(STARTED, TextDelta("Hi", (LOGPROB,)), end(), logprobs=True)
    (entry,) = chunk["choices"][0]["logprobs"]["content"]
    assert entry == {
        "token": "Hi",
        "logprob": -0.5,
        "bytes": [72, 105],
        "top_logprobs": [
            {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
            {"token": "Ho", "logprob": -1.5, "bytes": [72, 111]},
        ],
    }


async def whole(*events: Any, count: int = 1, logprobs: bool = False) -> dict[str, Any]:
    replies, usage = await collect(coming(*events), count, ReplyHeaders())
    reply = chat_completion("id1", "m", replies, usage, logprobs=logprobs)
    hold_to(reply, wire_reply.ChatCompletion, ChatCompletion)
    return reply


async def test_a_whole_reply_has_all_fields() -> None:
    reply = await whole(STARTED, ReasoningDelta("h"), ReasoningDelta("m"), TextDelta("H"), TextDelta("i"), end())
    assert {name: reply[name] for name in ("id", "object", "model", "usage")} == {
        "id": "id1",
        "object": "chat.completion",
        "model": "m",
        "usage": USAGE,
    }
    assert isinstance(reply["created"], int)
    message = {"role": "assistant", "content": "Hi", "refusal": None, "reasoning_content": "hm"}
    assert reply["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]


async def test_content_is_null_beside_calls_alone_and_empty_text_otherwise() -> None:
    (calling,) = (await whole(STARTED, CALL, end("tool_calls")))["choices"]
    assert calling["message"]["content"] is None
    assert calling["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert calling["finish_reason"] == "tool_calls"
    assert (await whole(STARTED, end()))["choices"][0]["message"] == {
        "role": "assistant",
        "content": "",
        "refusal": None,
    }


async def test_whole_choices_are_in_order_and_logprobs_stay_with_theirs() -> None:
    events = [(1, STARTED), (1, TextDelta("b", (LOGPROB,))), (1, end()), (0, STARTED), (0, TextDelta("a")), (0, end())]
    reply = await whole(*events, count=2, logprobs=True)
    assert [choice["message"]["content"] for choice in reply["choices"]] == ["a", "b"]
    assert [len(choice["logprobs"]["content"]) for choice in reply["choices"]] == [0, 1]
    assert reply["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        (None, {}),
        (STARTED, {"X-Served-By": "llamacpp"}),
        (
            Started("m", 3, ("top_k", "seed"), "ax_repl", moved_lines=1),
            {
                "X-Served-By": "ax_repl",
                "X-Ignored-Parameters": "top_k, seed",
                "X-Context-Trimmed-Messages": "3",
                "X-Prompt-Moved-Lines": "1",
            },
        ),
    ],
)
def test_headers_tell_what_was_changed_about_the_request(started: Started | None, expected: dict[str, str]) -> None:
    headers = ReplyHeaders()
    headers.started = started
    assert headers() == expected


def completion(*echoes: str, per_prompt: int = 1, logprobs: bool = False, usage: bool = False) -> TextCompletion:
    return TextCompletion(
        "cmpl-1", echoes or ("",), per_prompt=per_prompt, logprobs=logprobs, include_usage=usage, headers=ReplyHeaders()
    )


async def test_a_text_completion_has_text_instead_of_messages() -> None:
    reply = await completion("Once ").whole(coming(STARTED, TextDelta("upon"), end("length")))
    assert reply.pop("created") > 0
    assert reply == {
        "id": "cmpl-1",
        "object": "text_completion",
        "model": "m",
        "choices": [{"index": 0, "text": "Once upon", "logprobs": None, "finish_reason": "length"}],
        "usage": USAGE,
    }


async def test_a_streamed_text_completion_echoes_once_and_ends_with_done() -> None:
    events = coming(STARTED, TextDelta("upon"), TextDelta(" a"), end())
    chunks = parsed([chunk async for chunk in completion("Once ", usage=True).chunks(events)])
    assert [chunk["choices"][0]["text"] for chunk in chunks[:-2]] == ["Once upon", " a", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-2]] == [None, None, "stop"]
    assert all(chunk["usage"] is None and chunk["object"] == "text_completion" for chunk in chunks[:-2])
    assert (chunks[-2]["choices"], chunks[-2]["usage"], chunks[-1]) == ([], USAGE, "[DONE]")
    for chunk in chunks[:-1]:
        wire_reply.Completion.model_validate(chunk, strict=True)


async def test_an_echo_without_a_reply_is_still_sent() -> None:
    chunks = parsed([chunk async for chunk in completion("Once").chunks(coming(STARTED, end()))])
    assert [chunk["choices"][0]["text"] for chunk in chunks[:-1]] == ["Once"]


async def test_each_prompt_counts_once_however_many_choices_it_has() -> None:
    events = coming(*((index, event) for index in range(4) for event in (STARTED, end())))
    usage = (await completion("", "", "", "", per_prompt=2).whole(events))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (10, 8)


OFFSETS = {"tokens": ["Hi"], "token_logprobs": [-0.5], "top_logprobs": [{"Hi": -0.5, "Ho": -1.5}]}


async def test_logprobs_of_a_text_completion_are_lists_side_by_side() -> None:
    reply = await completion("Ah ", logprobs=True).whole(coming(STARTED, TextDelta("Hi", (LOGPROB,)), end()))
    assert reply["choices"][0]["logprobs"] == {**OFFSETS, "text_offset": [3]}
    hold_to(reply, wire_reply.Completion, Completion)


async def test_offsets_of_streamed_logprobs_go_on_from_chunk_to_chunk() -> None:
    events = coming(STARTED, TextDelta("Hi", (LOGPROB,)), TextDelta("Hi", (LOGPROB,)), end())
    chunks = parsed([chunk async for chunk in completion("Ah ", logprobs=True).chunks(events)])
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks[:-1]]
    assert logprobs == [{**OFFSETS, "text_offset": [3]}, {**OFFSETS, "text_offset": [5]}, None]
