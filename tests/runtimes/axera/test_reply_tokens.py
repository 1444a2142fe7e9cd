from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_service.errors import ProtocolError
from qwen_service.runtimes.axera.reply_tokens import ReplyTokens

few_ids = st.lists(st.integers(min_value=1, max_value=2), max_size=14)  # so that batches repeat


def calls_at_eos(reply: Sequence[int]) -> Iterator[list[int]]:
    """What the program decodes when the model ends its reply."""
    yield from (list(reply[at : at + 3]) for at in range(0, len(reply), 3))
    yield list(reply)


def calls_when_cut(reply: Sequence[int]) -> Iterator[list[int]]:
    """On a stop and at the end of the context the last one or two tokens come with the whole reply only."""
    yield from (list(reply[at : at + 3]) for at in range(0, len(reply) // 3 * 3, 3))
    yield list(reply)


@pytest.mark.parametrize("calls_of", [calls_at_eos, calls_when_cut])
@given(reply=few_ids)
def test_every_token_comes_out_once_and_in_order(calls_of, reply: list[int]) -> None:  # type: ignore[no-untyped-def] # hypothesis hides the parameter
    tokens = ReplyTokens()
    fresh: list[int] = []
    for call in calls_of(reply):
        assert not tokens.ended
        fresh += tokens.feed(call)
    tokens.finish()  # the program waits again
    assert fresh == reply
    assert tokens.ended


@given(reply=few_ids.filter(lambda ids: len(ids) > 3))
def test_the_last_call_of_a_reply_of_four_or_more_tokens_is_recognized_at_once(reply: list[int]) -> None:
    tokens = ReplyTokens()
    *batches, whole = calls_at_eos(reply)
    for batch in batches:
        tokens.feed(batch)
        assert not tokens.ended
    tokens.feed(whole)
    assert tokens.ended


@pytest.mark.parametrize("reply", [[7], [7, 8]])
def test_a_short_reply_that_was_cut_differs_from_one_that_ended(reply: list[int]) -> None:
    cut, whole = ReplyTokens(), ReplyTokens()
    for tokens, calls in ((cut, calls_when_cut(reply)), (whole, calls_at_eos(reply))):
        assert [token for call in calls for token in tokens.feed(call)] == reply
        tokens.finish()
    assert cut.cut
    assert not whole.cut


def test_an_empty_reply_ends_with_its_first_call() -> None:
    tokens = ReplyTokens()
    assert tokens.feed([]) == []
    assert tokens.ended


def test_a_batch_that_repeats_the_first_is_held_back_until_the_next_call() -> None:
    tokens = ReplyTokens()
    assert tokens.feed([7, 7, 7]) == [7, 7, 7]
    assert tokens.feed([7, 7, 7]) == []
    assert tokens.feed([8]) == [7, 7, 7, 8]
    assert tokens.feed([7, 7, 7, 7, 7, 7, 8]) == []
    assert tokens.ended


def test_a_whole_reply_that_looks_like_a_repeated_batch_adds_nothing() -> None:
    tokens = ReplyTokens()
    assert tokens.feed([7, 8, 9]) == [7, 8, 9]
    assert tokens.feed([7, 8, 9]) == []
    assert not tokens.ended
    tokens.finish()
    assert tokens.ended


def test_a_whole_reply_that_contradicts_its_batches_is_an_error() -> None:
    tokens = ReplyTokens()
    tokens.feed([1, 2, 3])
    with pytest.raises(ProtocolError):
        tokens.feed([9, 2, 3, 4])


def test_a_call_after_the_end_is_an_error() -> None:
    tokens = ReplyTokens()
    tokens.feed([])
    with pytest.raises(ProtocolError):
        tokens.feed([1])
