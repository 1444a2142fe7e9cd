import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_service.chat import ReasoningDelta, TextDelta, TokenLogprob, ToolCall
from qwen_service.runtime import Piece
from qwen_service.text.output_parser import OutputFormat, OutputParser, Parsed

QWEN = OutputFormat(reasoning=("<think>", "</think>"), tool_call=("<tool_call>", "</tool_call>"))
PLAIN = OutputFormat()
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
NOW = ToolCall("", "now", "{}")
Reason = Literal["stop", "length"]


def joined(events: Iterable[Parsed]) -> list[Parsed]:
    """Neighbours of one kind as one, and ids, which are random, left out."""
    result: list[Parsed] = []
    for event in events:
        last = result[-1] if result else None
        match event:
            case TextDelta() if isinstance(last, TextDelta):
                result[-1] = TextDelta(last.text + event.text, last.logprobs + event.logprobs)
            case ReasoningDelta() if isinstance(last, ReasoningDelta):
                result[-1] = ReasoningDelta(last.text + event.text)
            case ToolCall():
                result.append(replace(event, id=""))
            case _:
                result.append(event)
    return result


def parse(
    pieces: Sequence[str], *, reason: Reason = "stop", output_format: OutputFormat = QWEN, **options: Any
) -> list[Parsed]:
    parser = OutputParser(output_format, **({"tools": True} | options))
    events = [event for text in pieces for event in parser.feed(Piece(text, token_count=1))]
    return joined(events + parser.finish(reason))


def cut(text: str, positions: Iterable[int]) -> list[str]:
    edges = [0, *sorted(position % (len(text) + 1) for position in positions), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


# The ordinary reply


def test_a_plain_reply_passes_piece_by_piece() -> None:
    parser = OutputParser(PLAIN, tools=False)
    assert parser.feed(Piece("Hel", 1)) == [TextDelta("Hel")]
    assert parser.feed(Piece("", 1)) == []
    assert parser.feed(Piece("lo", 1)) == [TextDelta("lo")]
    assert parser.finish("stop") == []
    assert parser.finish_reason("stop") == "stop"


def test_text_before_anything_that_could_be_a_tag_is_sent_at_once() -> None:
    parser = OutputParser(QWEN, tools=True, stop=["END"])
    assert parser.feed(Piece("Hello E", 1)) == [TextDelta("Hello ")]
    assert parser.feed(Piece("arth ", 1)) == [TextDelta("Earth")]


# Stop strings


def test_a_stop_string_ends_the_text_and_is_not_a_part_of_it() -> None:
    parser = OutputParser(PLAIN, tools=False, stop=["\n\n"])
    assert parser.feed(Piece("one\n\ntwo", 3)) == [TextDelta("one")]
    assert parser.stopped
    assert parser.feed(Piece("three", 1)) == []
    assert parser.finish("length") == []
    assert parser.finish_reason("length") == "stop"


def test_a_stop_string_across_three_pieces_is_held_back() -> None:
    parser = OutputParser(PLAIN, tools=False, stop=["</end>"])
    assert parser.feed(Piece("a</", 1)) == [TextDelta("a")]
    assert parser.feed(Piece("en", 1)) == []
    assert not parser.stopped
    assert parser.feed(Piece("d>b", 1)) == []
    assert parser.stopped


def test_what_only_began_like_a_stop_string_comes_out_at_the_end() -> None:
    assert parse(["a</en"], stop=["</end>"], output_format=PLAIN) == [TextDelta("a</en")]


def test_the_earliest_of_several_stop_strings_wins() -> None:
    assert parse(["hello world"], stop=["world", "lo"], output_format=PLAIN) == [TextDelta("hel")]


def test_an_empty_stop_string_stops_nothing() -> None:
    assert parse(["ab"], stop=[""], output_format=PLAIN) == [TextDelta("ab")]


def test_a_stop_string_in_reasoning_or_in_a_call_is_not_one() -> None:
    reply = f"<think>\nuser asks\n</think>\n\nok {CALL}"
    assert parse([reply], stop=["user", "name"]) == [ReasoningDelta("user asks"), TextDelta("ok"), NOW]


def test_a_stop_string_met_only_when_the_text_ends_still_counts() -> None:
    parser = OutputParser(QWEN, tools=True, stop=["\n", "x yz"])
    assert parser.feed(Piece("x \n", 1)) == [TextDelta("x")]
    assert parser.finish("length") == [TextDelta(" ")]
    assert parser.finish_reason("length") == "stop"


# Reasoning


def test_a_think_block_is_reasoning_and_its_newlines_are_dropped() -> None:
    events = parse(["<think>\nLet me\nsee.\n</think>\n\nHello"])
    assert events == [ReasoningDelta("Let me\nsee."), TextDelta("Hello")]


def test_an_empty_think_block_leaves_no_trace() -> None:
    assert parse(["<think>\n\n</think>\n\nHello"]) == [TextDelta("Hello")]


def test_a_block_that_the_prompt_opened_needs_no_tag() -> None:
    assert parse(["Hm.\n</think>\n\nHi"], starts_in_reasoning=True) == [ReasoningDelta("Hm."), TextDelta("Hi")]


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_thinking_that_never_ends_is_all_reasoning(reason: Reason) -> None:
    assert parse(["<think>\nHm", "mm</thi"], reason=reason) == [ReasoningDelta("Hmmm</thi")]


def test_a_think_tag_later_in_the_reply_is_what_the_model_writes_about() -> None:
    assert parse(["Use <think>x</think>."]) == [TextDelta("Use <think>x</think>.")]


def test_a_model_without_tags_keeps_them_as_text() -> None:
    reply = f"<think>a</think>{CALL}"
    assert parse([reply], output_format=PLAIN) == [TextDelta(reply)]


def test_reasoning_tokens_are_counted_with_both_tags() -> None:
    parser = OutputParser(QWEN, tools=False)
    for text in ("<think>", "\n", "a", "b", "</think>", "\n\n", "c"):
        parser.feed(Piece(text, 1))
    assert parser.reasoning_tokens == 5


def test_a_call_drafted_while_thinking_is_reasoning() -> None:
    events = parse([f"<think>\nI could write {CALL} now.\n</think>\n\nok"])
    assert events == [ReasoningDelta(f"I could write {CALL} now."), TextDelta("ok")]


def test_a_call_after_which_thinking_never_ends_is_a_call() -> None:
    assert parse([f"<think>\nI shall call it.\n{CALL}"]) == [ReasoningDelta("I shall call it."), NOW]


def test_the_bare_tag_in_thinking_that_never_ends_is_reasoning() -> None:
    assert parse(["<think>\na <tool_call> b"]) == [ReasoningDelta("a <tool_call> b")]


# Tool calls


def test_a_call_alone_comes_without_text() -> None:
    parser = OutputParser(QWEN, tools=True)
    events = parser.feed(Piece(CALL, 20))
    assert joined(events) == [NOW]
    assert parser.finish("stop") == []
    assert parser.finish_reason("stop") == "tool_calls"


def test_parallel_calls_keep_their_order_and_have_unique_ids() -> None:
    parser = OutputParser(QWEN, tools=True)
    events = parser.feed(Piece(f"{CALL}\n{CALL.replace('now', 'then')}\n", 40)) + parser.finish("stop")
    assert [event.name for event in events if isinstance(event, ToolCall)] == ["now", "then"]
    assert len({event.id for event in events if isinstance(event, ToolCall)}) == 2
    assert not [event for event in events if isinstance(event, TextDelta)]


def test_where_one_call_is_wanted_the_reply_ends_with_it() -> None:
    parser = OutputParser(QWEN, tools=True, parallel_tool_calls=False)
    assert joined(parser.feed(Piece(f"{CALL}\n{CALL} text", 40))) == [NOW]
    assert parser.stopped
    assert parser.finish("length") == []
    assert parser.finish_reason("length") == "tool_calls"


def test_white_space_around_calls_is_dropped_and_text_is_kept() -> None:
    assert parse([f"First.\n\n{CALL}\n Then."]) == [TextDelta("First."), NOW, TextDelta("Then.")]


def test_a_closing_tag_in_a_string_does_not_end_the_call() -> None:
    payload = {"name": "write", "arguments": {"text": 'x</tool_call>"{y}'}}
    (call,) = parse([f"<tool_call>{json.dumps(payload)}</tool_call>"])
    assert isinstance(call, ToolCall)
    assert json.loads(call.arguments) == payload["arguments"]


def test_a_call_cut_by_the_token_limit_is_not_emitted() -> None:
    parser = OutputParser(QWEN, tools=True)
    assert joined(parser.feed(Piece("ok" + CALL[:30], 9))) == [TextDelta("ok")]
    assert parser.finish("length") == []
    assert parser.finish_reason("length") == "length"


def test_a_reply_cut_in_its_second_call_says_length() -> None:
    parser = OutputParser(QWEN, tools=True)
    assert joined(parser.feed(Piece(CALL + CALL[:30], 9))) == [NOW]
    assert parser.finish("length") == []
    assert parser.finish_reason("length") == "length"


def test_a_forgotten_closing_tag_does_not_lose_the_call() -> None:
    assert parse(['<tool_call>\n{"name": "now", "arguments": {}}\n']) == [NOW]


@pytest.mark.parametrize(
    "payload", ['\n{"name": "f", "arguments": {}}}\n', "\n{'name': 'f'}\n", '{"arguments": {}}', " is a tag", ""]
)
def test_a_malformed_call_is_text(payload: str) -> None:
    reply = f"a <tool_call>{payload}</tool_call> b"
    assert parse([reply]) == [TextDelta(reply)]


def test_a_good_call_after_a_malformed_one_is_found() -> None:
    broken = '<tool_call>{"name": "f", "arguments": {"a": "no end}}</tool_call>'
    assert parse([broken, "\n", CALL]) == [TextDelta(broken), NOW]


def test_a_tag_that_opens_twice_opens_once() -> None:
    assert parse(["<tool_call>\n" + CALL]) == [TextDelta("<tool_call>"), NOW]


def test_prose_about_the_tag_is_not_held_back() -> None:
    parser = OutputParser(QWEN, tools=True)
    assert joined(parser.feed(Piece("The <tool_call> tag", 5))) == [TextDelta("The <tool_call> tag")]


def test_without_tools_the_tags_stay_text() -> None:
    assert parse([CALL], tools=False) == [TextDelta(CALL)]


# Calls whose tags the model forgot

BARE = '{"name": "now", "arguments": {}}'


@pytest.mark.parametrize("reply", [BARE, f"\n{BARE}\n", f"```json\n{BARE}\n```", f"<think>\n</think>\n\n```\n{BARE}"])
def test_a_reply_that_begins_with_a_call_needs_no_tags(reply: str) -> None:
    assert parse([reply], tool_names=["now"]) == [NOW]


def test_what_follows_a_call_without_tags_is_invented_and_ends_the_reply() -> None:
    parser = OutputParser(QWEN, tools=True, tool_names=["now"])
    assert joined(parser.feed(Piece(f"{BARE}\nIt is noon. {BARE}", 20))) == [NOW]
    assert parser.stopped
    assert parser.finish("length") == []
    assert parser.finish_reason("length") == "tool_calls"


@pytest.mark.parametrize(
    "reply",
    [
        '{"name": "noon", "arguments": {}}',
        "{}",
        '{"nam',
        "See: " + BARE,
        '{"name": "now", "arguments": []} x',
        '{"name": "now", }',
    ],
)
def test_json_that_is_no_call_of_a_known_tool_is_text(reply: str) -> None:
    assert parse([reply], tool_names=["now"]) == [TextDelta(reply)]


def test_json_that_names_another_thing_is_not_held_back() -> None:
    parser = OutputParser(QWEN, tools=True, tool_names=["now"])
    assert parser.feed(Piece('{"name": "Al', 5)) == [TextDelta('{"name": "Al')]


def test_a_call_without_tags_that_the_limit_cut_is_not_emitted() -> None:
    parser = OutputParser(QWEN, tools=True, tool_names=["now"])
    assert parser.feed(Piece(BARE[:25], 5)) + parser.finish("length") == []
    assert parser.finish_reason("length") == "length"


# Logprobs


def lp(token: str) -> TokenLogprob:
    return TokenLogprob(token, token.encode(), -0.5)


def test_logprobs_go_out_with_the_text_of_their_token() -> None:
    parser = OutputParser(QWEN, tools=True, stop=["xyz"])
    assert parser.feed(Piece("a", 1, logprobs=(lp("a"),))) == [TextDelta("a", (lp("a"),))]
    assert parser.feed(Piece("bx", 1, logprobs=(lp("bx"),))) == [TextDelta("b")]
    assert parser.feed(Piece("q", 1, logprobs=(lp("q"),))) == [TextDelta("xq", (lp("bx"), lp("q")))]


def test_logprobs_of_half_a_character_are_not_lost() -> None:
    parser = OutputParser(PLAIN, tools=False, stop=["#"])
    events = parser.feed(Piece("", 1, logprobs=(lp("\x00"),))) + parser.feed(Piece("é", 1, logprobs=(lp("é"),)))
    assert joined(events) == [TextDelta("é", (lp("\x00"), lp("é")))]


def test_logprobs_of_reasoning_and_calls_do_not_appear_with_the_text() -> None:
    parser = OutputParser(QWEN, tools=True)
    reply = ["<think>", "hm", "</think>", "a", *cut(CALL, [10, 20]), "b"]
    events = [event for text in reply for event in parser.feed(Piece(text, 1, logprobs=(lp(text),)))]
    assert [event.logprobs for event in events if isinstance(event, TextDelta)] == [(lp("a"),), (lp("b"),)]


# Properties

TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", CALL, "<", "<t", "tool", "call>"]
OTHERS = [
    '{"name": "now"',
    '{ "',
    'name": "n',
    '{"name": "f", "arguments": {',
    '"',
    "\\",
    "}",
    "\n",
    " ",
    "a",
    "ab",
    "abc",
    "é",
    "END",
    "E",
]
FRAGMENTS = st.sampled_from(TAGS + OTHERS)
REPLIES = st.lists(FRAGMENTS, max_size=14).map("".join)
STOPS = st.lists(
    st.sampled_from(
        ["a", "ab", "bc", "END", "\n", "\n\n", " \n", "<", "<tool", "<tool_call>", " <tool_call>x", "call>{", '"']
    ),
    max_size=3,
)
CUTS = st.lists(st.integers(0, 10_000), max_size=12)
REASONS: st.SearchStrategy[Reason] = st.sampled_from(["stop", "length"])


@given(REPLIES, CUTS, STOPS, REASONS, st.sampled_from([(), ("now",), ("f", "name")]), st.booleans())
def test_however_a_reply_is_cut_the_events_are_the_same(
    reply: str, positions: list[int], stop: list[str], reason: Reason, names: tuple[str, ...], thinking: bool
) -> None:
    tools: dict[str, Any] = {"tools": names != (), "tool_names": names}
    options = tools | {"stop": stop, "starts_in_reasoning": thinking, "reason": reason}
    whole = parse([reply], **options)
    assert parse(cut(reply, positions), **options) == whole
    assert parse(list(reply), **options) == whole


@given(REPLIES, REPLIES, STOPS)
def test_nothing_is_sent_that_a_later_piece_could_change(reply: str, rest: str, stop: list[str]) -> None:
    sent = joined(OutputParser(QWEN, tools=True, tool_names=["now"], stop=stop).feed(Piece(reply, 1)))
    final = parse([reply + rest], tool_names=["now"], stop=stop)
    assert final[: max(0, len(sent) - 1)] == sent[:-1]
    if sent:
        last, then = sent[-1], final[len(sent) - 1]
        assert type(last) is type(then)
        if not isinstance(last, ToolCall) and not isinstance(then, ToolCall):
            assert then.text.startswith(last.text)


@given(REPLIES, STOPS, REASONS, st.booleans())
def test_visible_text_never_holds_a_stop_string(reply: str, stop: list[str], reason: Reason, thinking: bool) -> None:
    events = parse([reply], stop=stop, reason=reason, tools=False, starts_in_reasoning=thinking)
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert not any(needle in text for needle in stop)


WORDS: st.SearchStrategy[str] = st.text('ab{}"\\<>/é 😀\n', min_size=1, max_size=12).map(lambda text: f"x{text}x")
ARGUMENTS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    WORDS, st.one_of(WORDS, st.integers(), st.just("</tool_call>"), st.just({"<tool_call>": []}))
)
CALLS = st.builds(lambda arguments: {"name": "f", "arguments": arguments}, ARGUMENTS)


@given(st.none() | WORDS, st.lists(st.tuples(st.none() | WORDS, CALLS), max_size=3), st.none() | WORDS, CUTS)
def test_text_reasoning_and_call_sources_together_are_the_reply(
    thought: str | None, calls: list[tuple[str | None, dict[str, Any]]], last: str | None, positions: list[int]
) -> None:
    reply, expected = "", list[Parsed]()
    if thought is not None:
        reply, expected = f"<think>\n{thought}\n</think>\n\n", [ReasoningDelta(thought)]
    for text, call in calls:
        reply += f"{text or ''}\n<tool_call>\n{json.dumps(call)}\n</tool_call>\n"
        expected += [TextDelta(text)] if text else []
        expected.append(ToolCall("", "f", json.dumps(call["arguments"], ensure_ascii=False)))
    expected += [TextDelta(last)] if last else []
    assert parse(cut(reply + (last or ""), positions)) == expected
