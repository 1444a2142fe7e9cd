from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_service.errors import ProtocolError
from qwen_service.runtime import Piece
from qwen_service.runtimes.axera.channel import Decoded, Encoded, Idle
from qwen_service.runtimes.axera.reply import AxeraReply
from qwen_service.runtimes.axera.reply_tokens import LONGEST_RUN
from qwen_service.text.tokenizer import LocalTokenizer

END = 151645


def calls_at_eos(reply: list[int]) -> Iterator[tuple[int, ...]]:
    yield from (tuple(reply[at : at + 3]) for at in range(0, len(reply), 3))
    yield tuple(reply)


def read(
    tokenizer: LocalTokenizer, ids: list[int], max_tokens: int | None, room: int = 1000
) -> tuple[list[int], str, str]:
    reply = AxeraReply(tokenizer.decoder(), end_ids={END}, most=max_tokens, room=room)
    pieces = [piece for call in calls_at_eos(ids) if not reply.ended and (piece := reply.feed(Decoded(call)))]
    if not reply.ended and (piece := reply.feed(Idle())):
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
    reply = AxeraReply(tokenizer.decoder(), end_ids={END}, most=None, room=10_000)
    for _ in range(LONGEST_RUN // 3):
        reply.feed(Decoded((7, 7, 7)))
    with pytest.raises(ProtocolError, match="same token"):
        reply.feed(Decoded((7, 7, 7)))


def test_a_program_that_waits_before_its_reply_was_decoded_is_an_error(tokenizer: LocalTokenizer) -> None:
    reply = AxeraReply(tokenizer.decoder(), end_ids={END}, most=None, room=10_000)
    with pytest.raises(ProtocolError, match="before it has decoded"):
        reply.tokens.refuse_early_end()
    reply.feed(Decoded((1, 2, 3)))
    reply.feed(Decoded((4, 5, 6)))
    with pytest.raises(ProtocolError, match="before it has decoded"):
        reply.tokens.refuse_early_end()


@pytest.fixture
def reply(tokenizer: LocalTokenizer) -> AxeraReply:
    return AxeraReply(tokenizer.decoder(), end_ids={END}, most=100)


def feed(reply: AxeraReply, *calls: Sequence[int]) -> list[Piece]:
    pieces = [reply.feed(Decoded(tuple(call))) for call in calls]
    return [piece for piece in pieces if piece is not None]


def test_each_id_comes_once_and_the_last_piece_has_the_reason(reply: AxeraReply) -> None:
    pieces = feed(reply, [1, 2, 3], [4], [1, 2, 3, 4])
    assert [piece.token_ids for piece in pieces] == [(1, 2, 3), (4,), ()]
    assert [piece.finish_reason for piece in pieces] == [None, None, "stop"]
    assert reply.ids == [1, 2, 3, 4]


def test_characters_cut_by_a_batch_are_joined(tokenizer: LocalTokenizer, reply: AxeraReply) -> None:
    ids = tokenizer.encode_now(["a 🦜 flew"])
    pieces = feed(reply, *(ids[start : start + 3] for start in range(0, len(ids), 3)), ids)
    assert "".join(piece.text for piece in pieces) == "a 🦜 flew"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece.text for piece in pieces)


def test_a_first_eos_ends_an_empty_reply_and_the_program_goes_on(reply: AxeraReply) -> None:
    pieces = feed(reply, [END, 5, 6])
    assert [(piece.text, piece.token_ids, piece.finish_reason) for piece in pieces] == [("", (), "stop")]


def test_the_budget_cuts_inside_a_batch(tokenizer: LocalTokenizer) -> None:
    reply = AxeraReply(tokenizer.decoder(), end_ids={END}, most=4)
    assert [piece.token_ids for piece in feed(reply, [1, 2, 3], [4, 5, 6])] == [(1, 2, 3), (4,)]
    assert reply.ended


def test_a_budget_of_nothing_gives_nothing(tokenizer: LocalTokenizer) -> None:
    reply = AxeraReply(tokenizer.decoder(), end_ids={END}, most=0)
    assert [(piece.token_count, piece.finish_reason) for piece in feed(reply, [1, 2, 3])] == [(0, "length")]


def test_tokens_that_only_the_whole_reply_has_tell_of_a_full_context(reply: AxeraReply) -> None:
    pieces = feed(reply, [1, 2, 3], [1, 2, 3, 4])
    assert [(piece.token_ids, piece.finish_reason) for piece in pieces] == [((1, 2, 3), None), ((4,), "length")]


def test_an_idle_program_ends_the_reply_that_looked_like_a_repetition(reply: AxeraReply) -> None:
    feed(reply, [1, 2, 3], [1, 2, 3])
    assert not reply.ended
    piece = reply.feed(Idle())
    assert piece is not None
    assert piece.finish_reason == "stop"
    assert reply.ids == [1, 2, 3]


def test_the_start_of_the_work_is_no_piece(reply: AxeraReply) -> None:
    assert reply.feed(Encoded()) is None
