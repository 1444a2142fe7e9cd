from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_service.errors import ProtocolError
from qwen_service.runtimes.axera.repl_reply import ReplReply
from qwen_service.runtimes.axera.reply_tokens import LONGEST_RUN
from qwen_service.text.tokenizer import LocalTokenizer

END = 151645


def calls_at_eos(reply: list[int]) -> Iterator[tuple[int, ...]]:
    yield from (tuple(reply[at : at + 3]) for at in range(0, len(reply), 3))
    yield tuple(reply)


def read(
    tokenizer: LocalTokenizer, ids: list[int], max_tokens: int | None, room: int = 1000
) -> tuple[list[int], str, str]:
    reply = ReplReply(tokenizer.decoder(), end_ids={END}, max_tokens=max_tokens, room=room)
    pieces = [piece for call in calls_at_eos(ids) if not reply.ended and (piece := reply.feed(call))]
    if not reply.ended and (piece := reply.finish()):
        pieces.append(piece)
    reasons = [piece.finish_reason for piece in pieces if piece.finish_reason]
    assert len(reasons) == 1
    assert pieces[-1].finish_reason
    return [id_ for piece in pieces for id_ in piece.token_ids], "".join(piece.text for piece in pieces), reasons[0]


@given(ids=st.lists(st.integers(min_value=90, max_value=94), max_size=12), max_tokens=st.integers(1, 15))
def test_no_more_than_max_tokens_and_no_less(tokenizer: LocalTokenizer, ids: list[int], max_tokens: int) -> None:
    taken, text, reason = read(tokenizer, ids, max_tokens)
    assert taken == ids[:max_tokens]
    assert text == tokenizer.decode_now(taken)
    assert reason == "length" if len(ids) > max_tokens else reason in ("stop", "length")
    assert reason == "stop" or len(taken) == max_tokens


@given(before=st.integers(0, 8), after=st.integers(0, 8))
def test_what_comes_after_an_end_token_is_not_handed_out(tokenizer: LocalTokenizer, before: int, after: int) -> None:
    ids = [*range(1000, 1000 + before), END, *range(2000, 2000 + after)]
    assert read(tokenizer, ids, None) == (ids[:before], tokenizer.decode_now(ids[:before]), "stop")


def test_a_reply_that_fills_the_context_is_a_length(tokenizer: LocalTokenizer) -> None:
    ids = list(range(1000, 1009))
    assert read(tokenizer, ids, None, room=9)[2] == "length"
    assert read(tokenizer, ids, None, room=11)[2] == "stop"


def test_a_split_character_is_whole_in_the_text(tokenizer: LocalTokenizer) -> None:
    ids = tokenizer.encode_now(["👩‍👩‍👧" * 3])
    assert read(tokenizer, ids, None)[1] == "👩‍👩‍👧" * 3
    assert read(tokenizer, ids, 1)[1] in ("", "�", "👩")


def test_an_endless_run_of_one_token_is_refused(tokenizer: LocalTokenizer) -> None:
    reply = ReplReply(tokenizer.decoder(), end_ids={END}, max_tokens=None, room=10_000)
    for _ in range(LONGEST_RUN // 3):
        reply.feed((7, 7, 7))
    with pytest.raises(ProtocolError, match="same token"):
        reply.feed((7, 7, 7))


def test_a_program_that_waits_before_its_reply_was_decoded_is_an_error(tokenizer: LocalTokenizer) -> None:
    reply = ReplReply(tokenizer.decoder(), end_ids={END}, max_tokens=None, room=10_000)
    with pytest.raises(ProtocolError):
        reply.finish()
    reply.feed((1, 2, 3))
    reply.feed((4, 5, 6))
    with pytest.raises(ProtocolError):
        reply.finish()
