import asyncio
import json
import threading
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from qwen_service.errors import InstallError, InvalidRequest
from qwen_service.text.tokenizer import SECTION, LocalTokenizer

SAMPLE = "Grüße, 世界! 👩‍👩‍👧 naïve\r\n\ttabs  and   spaces\n\n\n12345 don't"
KNOWN_IDS = (
    "151644,8948,198,2610,525,1207,16948,11,3465,553,54364,14817,13,1446,525,264,10950,17847,13,151645,198,"
    "151644,872,198,14990,1879,151645,198,151644,77091,198"
)


@pytest.fixture(scope="module")
def qwen(qwen_tokenizer_folder: Path) -> LocalTokenizer:
    return LocalTokenizer(qwen_tokenizer_folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny byte-level BPE: its 256 bytes and a few special tokens."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({character: n for n, character in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.add_special_tokens(["<|end|>"])
    bpe.add_tokens(["<think>", '"model": {'])
    (tmp_path / "tokenizer.json").write_text(bpe.to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    return tmp_path


def test_the_known_conversation_has_the_known_ids(qwen: LocalTokenizer) -> None:
    start, end = qwen.special_ids["<|im_start|>"], qwen.special_ids["<|im_end|>"]
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    parts: list[str | int] = [
        start,
        "system\n",
        system,
        end,
        "\n",
        start,
        "user\n",
        "hello world",
        end,
        "\n",
        start,
        "assistant\n",
    ]
    assert qwen.encode_now(parts) == [int(id_) for id_ in KNOWN_IDS.split(",")]


def test_text_is_never_parsed_for_special_tokens(qwen: LocalTokenizer) -> None:
    for text in qwen.special_ids:
        ids = qwen.encode_now([text])
        assert not {*ids} & {*qwen.special_ids.values()}, text
        assert qwen.decode_now(ids) == text


def test_where_one_text_part_ends_is_not_seen_in_the_ids(qwen: LocalTokenizer) -> None:
    whole = qwen.encode_now([SAMPLE])
    for at in range(len(SAMPLE)):
        assert qwen.encode_now([SAMPLE[:at], SAMPLE[at:]]) == whole


@pytest.mark.parametrize("filler", ["word ", "don't 12 ", "世界 ", " \n\t", "e\u0301 x", "A"])
def test_a_long_text_is_cut_where_it_is_not_seen(qwen: LocalTokenizer, filler: str) -> None:
    text = (filler * (3 * SECTION // len(filler))) + " the end"
    whole = qwen._bpe.encode_batch_fast([text], add_special_tokens=False)[0].ids
    assert qwen.encode_now([text]) == whole


def test_control_tokens_are_not_shown_and_other_added_ones_are(qwen: LocalTokenizer) -> None:
    special = qwen.special_ids
    ids = [special["<|im_start|>"], special["<think>"], *qwen.encode_now(["a"]), special["</think>"]]
    assert qwen.decode_now(ids) == "<think>a</think>"
    assert qwen.eos_id == special["<|im_end|>"] == 151645
    assert qwen.bos_id is None
    assert "<|im_start|>" in qwen.chat_template


@given(text=st.text())
def test_every_text_survives(qwen: LocalTokenizer, text: str) -> None:
    ids = qwen.encode_now([text])
    # Qwen normalizes to NFC before it tokenizes, so what comes back is a fixed point of the round trip.
    once = qwen.decode_now(ids)
    assert qwen.decode_now(qwen.encode_now([once])) == once
    assert len(once) <= len(text) * 4


def test_ids_given_in_any_pieces_decode_to_the_same_text(qwen: LocalTokenizer) -> None:
    ids = qwen.encode_now([SAMPLE])
    for at in range(len(ids) + 1):
        decoder = qwen.decoder()
        assert decoder.feed(ids[:at]) + decoder.feed(ids[at:]) + decoder.finish() == SAMPLE


def test_half_a_character_is_never_emitted(qwen: LocalTokenizer) -> None:
    decoder = qwen.decoder()
    pieces = [decoder.feed([id_]) for id_ in qwen.encode_now([SAMPLE])]
    assert "".join(pieces) == SAMPLE
    assert "�" not in "".join(pieces)
    assert "" in pieces  # this sample does split characters


def test_a_character_that_stays_incomplete_becomes_a_replacement_character(qwen: LocalTokenizer) -> None:
    decoder = qwen.decoder()
    half = next(id_ for id_ in qwen.encode_now(["🜂"]) if not qwen.decoder().feed([id_]))
    assert decoder.feed([half]) == ""
    assert decoder.finish() == "�"
    assert decoder.finish() == ""


@given(ids=st.lists(st.integers(min_value=-5, max_value=200_000)))
def test_nonsense_ids_decode_without_an_error(qwen: LocalTokenizer, ids: list[int]) -> None:
    decoder = qwen.decoder()
    assert "".join(decoder.feed([id_]) for id_ in ids) + decoder.finish() == qwen.decode_now(ids)


@pytest.mark.parametrize("wrong", [-1, 151669, 999_999])
def test_an_id_that_is_no_token_is_refused(qwen: LocalTokenizer, wrong: int) -> None:
    assert qwen.encode_now([151668, "a", 0]) == [151668, 64, 0]
    with pytest.raises(InvalidRequest, match=f"no token {wrong}: the vocabulary ends at 151668"):
        qwen.encode_now([40, wrong])


def test_lone_surrogates_are_encoded_as_replacement_characters(qwen: LocalTokenizer) -> None:
    assert qwen.decode_now(qwen.encode_now(["a\ud83d\ude00b\ud83d"])) == "a😀b�"


async def test_a_long_text_does_not_hold_up_other_threads(qwen: LocalTokenizer) -> None:
    gaps: list[float] = []
    done = threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not done.wait(0.001):
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        started = time.perf_counter()
        ids = await qwen.encode(["Some words of a long text. " * 80_000])
        took = time.perf_counter() - started
    finally:
        done.set()
        await asyncio.to_thread(watcher.join)
    assert len(ids) > 400_000
    assert max(gaps) < took / 2


def test_a_small_tokenizer_knows_its_special_tokens(folder: Path) -> None:
    tokenizer = LocalTokenizer(folder)
    assert tokenizer.special_ids == {"<|end|>": 256, "<think>": 257, '"model": {': 258}
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.vocab_size) == (256, None, 259)
    assert tokenizer.decode_now([257, *tokenizer.encode_now(['"model": {<|end|>']), 256]) == '<think>"model": {<|end|>'


def test_the_template_comes_from_its_own_file_or_from_the_default_of_several(folder: Path) -> None:
    assert LocalTokenizer(folder).chat_template == ""
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert LocalTokenizer(folder).chat_template == "D"
    (folder / "chat_template.jinja").write_text("own")
    assert LocalTokenizer(folder).chat_template == "own"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
        ("{", "cannot be read"),
        ('{"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}', "byte-level"),
    ],
)
def test_an_unusable_file_is_named_with_the_reason(folder: Path, content: str | None, reason: str) -> None:
    path = folder / "tokenizer.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InstallError) as caught:
        LocalTokenizer(folder)
    assert str(path) in caught.value.message
    assert reason in caught.value.message
