from collections.abc import Sequence

import pytest

from qwen_service.errors import ProtocolError
from qwen_service.runtime import Piece
from qwen_service.runtimes.axera.api_reply import AxApiReply
from qwen_service.runtimes.axera.channel import Decoded, Encoded, Idle
from qwen_service.runtimes.axera.reply_tokens import LONGEST_RUN
from qwen_service.text.tokenizer import LocalTokenizer

EOS = 151645


@pytest.fixture
def reply(tokenizer: LocalTokenizer) -> AxApiReply:
    return AxApiReply(tokenizer.decoder(), eos_id=EOS, budget=100)


def feed(reply: AxApiReply, *calls: Sequence[int]) -> list[Piece]:
    pieces = [reply.feed(Decoded(tuple(call))) for call in calls]
    return [piece for piece in pieces if piece is not None]


def test_each_id_comes_once_and_the_last_piece_has_the_reason(reply: AxApiReply) -> None:
    pieces = feed(reply, [1, 2, 3], [4], [1, 2, 3, 4])
    assert [piece.token_ids for piece in pieces] == [(1, 2, 3), (4,), ()]
    assert [piece.finish_reason for piece in pieces] == [None, None, "stop"]
    assert reply.ids == [1, 2, 3, 4]


def test_characters_cut_by_a_batch_are_joined(tokenizer: LocalTokenizer, reply: AxApiReply) -> None:
    ids = tokenizer.encode_now(["a 🦜 flew"])
    pieces = feed(reply, *(ids[start : start + 3] for start in range(0, len(ids), 3)), ids)
    assert "".join(piece.text for piece in pieces) == "a 🦜 flew"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece.text for piece in pieces)


def test_a_first_eos_ends_an_empty_reply_and_the_program_goes_on(reply: AxApiReply) -> None:
    pieces = feed(reply, [EOS, 5, 6])
    assert [(piece.text, piece.token_ids, piece.finish_reason) for piece in pieces] == [("", (), "stop")]


def test_the_budget_cuts_inside_a_batch(tokenizer: LocalTokenizer) -> None:
    reply = AxApiReply(tokenizer.decoder(), eos_id=EOS, budget=4)
    assert [piece.token_ids for piece in feed(reply, [1, 2, 3], [4, 5, 6])] == [(1, 2, 3), (4,)]
    assert reply.ended


def test_a_budget_of_nothing_gives_nothing(tokenizer: LocalTokenizer) -> None:
    reply = AxApiReply(tokenizer.decoder(), eos_id=EOS, budget=0)
    assert [(piece.token_count, piece.finish_reason) for piece in feed(reply, [1, 2, 3])] == [(0, "length")]


def test_tokens_that_only_the_whole_reply_has_tell_of_a_full_context(reply: AxApiReply) -> None:
    pieces = feed(reply, [1, 2, 3], [1, 2, 3, 4])
    assert [(piece.token_ids, piece.finish_reason) for piece in pieces] == [((1, 2, 3), None), ((4,), "length")]


def test_an_idle_program_ends_the_reply_that_looked_like_a_repetition(reply: AxApiReply) -> None:
    feed(reply, [1, 2, 3], [1, 2, 3])
    assert not reply.ended
    piece = reply.feed(Idle())
    assert piece is not None
    assert piece.finish_reason == "stop"
    assert reply.ids == [1, 2, 3]


def test_the_start_of_the_work_is_no_piece(reply: AxApiReply) -> None:
    assert reply.feed(Encoded()) is None


def test_an_endless_run_of_one_token_is_a_failed_npu(tokenizer: LocalTokenizer) -> None:
    reply = AxApiReply(tokenizer.decoder(), eos_id=EOS, budget=10_000)
    with pytest.raises(ProtocolError, match="the same token"):
        feed(reply, *([7, 7, 7] for _ in range(LONGEST_RUN)))
