import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_service.errors import PromptTooLong, Unsupported
from qwen_service.runtimes.axera.kv_cache import CHUNK, Ids, KvCache

LARGEST = 1024


def holding(ids: Ids) -> KvCache:
    cache = KvCache(LARGEST)
    cache.hold(ids)
    return cache


def accepted(held: int, diff: int) -> bool:
    """The program's own rule."""
    return held + diff <= LARGEST and diff <= (LARGEST - held) // CHUNK * CHUNK


@given(
    held=st.integers(0, LARGEST + 500), common=st.integers(0, LARGEST), new=st.integers(0, LARGEST), known=st.booleans()
)
def test_every_plan_is_accepted_and_makes_the_cache_hold_exactly_the_prompt(
    held: int, common: int, new: int, known: bool
) -> None:
    cache = holding(tuple(range(held)))
    if not known:
        cache.doubt()
    prompt = (*range(min(common, held)), *range(5000, 5000 + new))
    if not 2 <= len(prompt) <= LARGEST:
        with pytest.raises((PromptTooLong, Unsupported)):
            cache.plan(prompt)
        return
    plan = cache.plan(prompt)
    before = plan.reset or tuple(range(held))
    assert before + plan.diff == prompt
    assert plan.diff
    assert accepted(len(before), len(plan.diff))
    assert known or plan.reset
    assert plan.cached == (0 if plan.reset else held)


@given(count=st.integers(2, LARGEST))
def test_a_reset_costs_no_more_steps_than_the_prompt_has(count: int) -> None:
    plan = KvCache(LARGEST).plan(tuple(range(count)))
    steps = math.ceil(len(plan.reset) / CHUNK) + math.ceil(len(plan.diff) / CHUNK)
    assert steps == max(2, math.ceil(count / CHUNK))  # two calls are two steps at least


def test_a_continuation_reuses_all_that_is_held() -> None:
    cache = holding((1, 2, 3))
    assert cache.reusable((1, 2, 3, 4)) == 3
    assert cache.plan((1, 2, 3, 4)).diff == (4,)


@pytest.mark.parametrize("prompt", [(1, 2, 3), (1, 2), (1, 2, 9, 4), ()])
def test_nothing_else_reuses_anything(prompt: Ids) -> None:
    assert holding((1, 2, 3)).reusable(prompt) == 0


def test_a_doubted_cache_holds_nothing_known() -> None:
    cache = holding((1, 2, 3))
    cache.doubt()
    assert cache.held is None
    assert cache.reusable((1, 2, 3, 4)) == 0
