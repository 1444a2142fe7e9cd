from pathlib import Path

from bench.kv_reuse import talk
from qwen_service.text.tokenizer import LocalTokenizer


async def test_a_talk_of_ten_turns_prefills_hardly_more_than_what_is_new(
    tmp_path: Path, small_tokenizer_folder: Path
) -> None:
    turns = await talk(tmp_path, LocalTokenizer(small_tokenizer_folder), 10, disturbed=False)
    assert sum(turn.prefilled for turn in turns) <= 1.05 * sum(turn.new for turn in turns)
    assert {turn.steps for turn in turns} == {1}


async def test_a_talk_that_is_disturbed_prefills_all_of_it_each_time(
    tmp_path: Path, small_tokenizer_folder: Path
) -> None:
    turns = await talk(tmp_path, LocalTokenizer(small_tokenizer_folder), 3, disturbed=True)
    assert [turn.prefilled for turn in turns[1:]] == [turn.prompt for turn in turns[1:]]
