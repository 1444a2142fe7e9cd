import pytest

from qwen_service.cluster.ranking import BLOCK, PromptBlocks, held
from qwen_service.runtime import HeldIds

TALK = tuple(range(3 * BLOCK + 40))


def test_a_hash_covers_all_that_is_before_it() -> None:
    one, other = PromptBlocks(TALK), PromptBlocks((7, *TALK[1:]))
    assert len(one.blocks) == 3
    assert not set(one.blocks) & set(other.blocks)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, len(TALK) - 1])
def test_a_cache_that_must_be_continued_counts_to_the_last_id(length: int) -> None:
    cache = held(HeldIds(TALK[:length]))
    assert cache.reusable(PromptBlocks(TALK)) == length
    assert cache.reusable(PromptBlocks((*TALK[: length - 1], 99_999, *TALK[length:]))) == 0


def test_a_cache_that_must_be_continued_is_of_no_use_to_a_shorter_prompt_or_the_same() -> None:
    cache = held(HeldIds(TALK))
    assert cache.reusable(PromptBlocks(TALK)) == 0
    assert cache.reusable(PromptBlocks(TALK[:200])) == 0


def test_a_cache_that_can_be_cut_counts_in_whole_blocks_unless_all_of_it_is_continued() -> None:
    cache = held(HeldIds(TALK, partly=True))
    assert cache.reusable(PromptBlocks((*TALK, 5))) == len(TALK)
    assert cache.reusable(PromptBlocks((*TALK[:300], 5))) == 2 * BLOCK
    assert cache.reusable(PromptBlocks((5, *TALK))) == 0


def test_the_last_id_of_a_prompt_is_always_prefilled() -> None:
    assert held(HeldIds(TALK, partly=True)).reusable(PromptBlocks(TALK[: 2 * BLOCK])) == 2 * BLOCK - 1
