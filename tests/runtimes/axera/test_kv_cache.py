import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_service.errors import PromptTooLong, Unsupported
from qwen_service.runtimes.axera.kv_cache import CHUNK, Ids, KvCache, Plan, Stop, held_after
from qwen_service.runtimes.axera.reply_tokens import ReplyTokens

LARGEST = 1024


def holding(ids: Ids) -> KvCache:
    cache = KvCache(LARGEST)
    cache.hold(ids)
    return cache


def steps(plan: Plan) -> int:
    return math.ceil(len(plan.reset or ()) / CHUNK) + math.ceil(len(plan.diff) / CHUNK)


def accepted(held: int, diff: int) -> bool:
    """The program's own rule."""
    return held + diff <= LARGEST and diff <= (LARGEST - held) // CHUNK * CHUNK


@given(
    held=st.integers(0, LARGEST + 500),
    common=st.integers(0, LARGEST),
    new=st.integers(0, LARGEST),
    known=st.booleans(),
    from_nothing=st.sampled_from([0, CHUNK, LARGEST]),
)
def test_every_plan_is_accepted_and_makes_the_cache_hold_exactly_the_prompt(
    held: int, common: int, new: int, known: bool, from_nothing: int
) -> None:
    cache = KvCache(LARGEST, from_nothing=from_nothing)
    cache.hold(tuple(range(held)))
    if not known:
        cache.invalidate()
    prompt = (*range(min(common, held)), *range(5000, 5000 + new))
    if not (1 if from_nothing else 2) <= len(prompt) <= LARGEST:
        with pytest.raises((PromptTooLong, Unsupported)):
            cache.plan(prompt)
        return
    plan = cache.plan(prompt)
    before = tuple(range(held)) if plan.reset is None else plan.reset
    assert before + plan.diff == prompt
    assert plan.diff
    assert accepted(len(before), len(plan.diff))
    assert before or len(plan.diff) <= from_nothing  # which the program would not check
    assert known or plan.reset is not None
    assert plan.cached == (held if plan.reset is None else 0)


@given(count=st.integers(2, LARGEST))
def test_a_reset_costs_no_more_steps_than_the_prompt_has(count: int) -> None:
    assert steps(KvCache(LARGEST).plan(tuple(range(count)))) == max(2, math.ceil(count / CHUNK))  # two calls
    assert steps(KvCache(LARGEST, from_nothing=CHUNK).plan(tuple(range(count)))) == math.ceil(count / CHUNK)


def test_a_continuation_reuses_all_that_is_held() -> None:
    cache = holding((1, 2, 3))
    assert cache.reusable((1, 2, 3, 4)) == 3
    assert cache.plan((1, 2, 3, 4)).diff == (4,)


@pytest.mark.parametrize("prompt", [(1, 2, 3), (1, 2), (1, 2, 9, 4), ()])
def test_nothing_else_reuses_anything(prompt: Ids) -> None:
    assert holding((1, 2, 3)).reusable(prompt) == 0


def test_a_doubted_cache_holds_nothing_known() -> None:
    cache = holding((1, 2, 3))
    cache.invalidate()
    assert cache.held is None
    assert cache.reusable((1, 2, 3, 4)) == 0


def test_a_stopped_prefill_leaves_what_was_held_only_if_a_reply_has_come_since_the_reset() -> None:
    cache = holding((1, 2, 3))
    assert cache.after_stopped_prefill == (1, 2, 3)
    cache.reset_to((1, 2))
    assert cache.held == (1, 2)
    assert cache.after_stopped_prefill is None


def tokens(*calls: list[int]) -> ReplyTokens:
    reply = ReplyTokens()
    for call in calls:
        reply.feed(call)
    reply.finish()
    return reply


EXACT, LOOSE, NONE = Stop(exactly_after=6), Stop(loosely=True), Stop()


@pytest.mark.parametrize(
    ("calls", "stop", "held"),
    [
        ([[1, 2, 3], [4], [1, 2, 3, 4]], NONE, (9, 1, 2, 3, 4)),
        ([[1, 2, 3], [1, 2, 3]], NONE, (9, 1, 2, 3)),
        ([[1, 2, 3], [1, 2, 3, 4]], NONE, None),  # the end of the context, or somebody else's stop
        ([[1, 2, 3], [4, 5, 6], [1, 2, 3, 4, 5, 6]], EXACT, (9, 1, 2, 3, 4, 5)),
        ([[1, 2, 3], [1, 2, 3]], Stop(exactly_after=3), (9, 1, 2)),
        ([[1, 2, 3], [1, 2, 3]], EXACT, (9, 1, 2, 3)),  # the second call, that was held, was the whole reply
        ([[1, 2, 3], [4, 5, 6], [1, 2, 3, 4, 5, 6, 7]], EXACT, None),  # it went on
        ([[1, 2, 3], [4, 5, 6], [7], [1, 2, 3, 4, 5, 6, 7]], EXACT, None),
        ([[7]], LOOSE, (8,)),
        ([[7]], NONE, None),
        ([[7], [7]], LOOSE, None),
        ([[1, 2, 3], [1, 2, 3, 3]], LOOSE, None),
        ([[1, 2, 3], [4, 5, 5], [1, 2, 3, 4, 5, 5]], LOOSE, None),
        ([[]], NONE, None),
    ],
)
def test_what_is_held_after_a_reply(calls: list[list[int]], stop: Stop, held: Ids | None) -> None:
    assert held_after((9,), tokens(*calls), stop, after_stopped_prefill=(8,)) == held


def test_nothing_is_known_of_a_reply_that_has_not_ended() -> None:
    reply = ReplyTokens()
    reply.feed([1, 2, 3])
    assert held_after((9,), reply, EXACT, after_stopped_prefill=(8,)) is None
