import asyncio
from pathlib import Path

import pytest

from qwen_service.errors import StartFailed
from qwen_service.models.installed import InstalledModel
from qwen_service.models.spec import ModelSpec
from qwen_service.runtimes.axera.bring_up import CardText


def card_text(folder: Path) -> CardText:
    return CardText(InstalledModel(ModelSpec("m", "ax_repl", (), tokenizer="tokenizer"), folder))


def lay_tokenizer(folder: Path, tokenizer: Path) -> None:
    (folder / "tokenizer").symlink_to(tokenizer.resolve())


async def test_the_tokenizer_is_read_once_for_all_cards(tmp_path: Path, small_tokenizer_folder: Path) -> None:
    lay_tokenizer(tmp_path, small_tokenizer_folder)
    text = card_text(tmp_path)
    told: list[str] = []
    first, second = await asyncio.gather(text.read(told.append), text.read(told.append))
    assert first is second
    assert told == ["reading the tokenizer"]


async def test_a_tokenizer_that_was_mended_is_read_at_the_next_start(
    tmp_path: Path, small_tokenizer_folder: Path
) -> None:
    text = card_text(tmp_path)
    with pytest.raises(StartFailed, match=r"tokenizer\.json") as failed:
        await text.read(lambda _: None)
    assert failed.value.permanent
    lay_tokenizer(tmp_path, small_tokenizer_folder)
    tokenizer, _ = await text.read(lambda _: None)
    assert tokenizer.decode_now(tokenizer.encode_now(["as it was"])) == "as it was"
