import json
import os
import stat
import zlib
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from qwen_service.chat import ChatRequest, Sampling
from qwen_service.errors import RuntimeFailure
from qwen_service.runtime import Prefill, Prompt
from qwen_service.runtimes.llamacpp.runtime import LlamaCpp
from qwen_service.runtimes.llamacpp.slot_files import SlotFiles, folder_of, identity
from qwen_service.runtimes.local_http import HttpError

PER_TOKEN = 10  # bytes


class Slots:
    """An engine's, with so many tokens each."""

    def __init__(self, folder: Path, *tokens: int) -> None:
        self.folder, self.tokens, self.restored = folder, tokens, dict[int, bytes]()

    async def post(self, path: str, body: Any) -> Any:
        slot, action = path.removeprefix("/slots/").split("?action=")
        file = self.folder / body["filename"]
        if action == "restore":
            self.restored[int(slot)] = file.read_bytes()
            return {"n_restored": len(file.read_bytes()) // PER_TOKEN}
        tokens = self.tokens[int(slot)]
        if tokens < 0:
            raise HttpError(501, b"pictures")
        file.write_bytes(slot.encode() * PER_TOKEN * tokens)
        return {"n_saved": tokens}


async def saved(folder: Path, *tokens: int, limit: int = 10**6) -> int:
    files = SlotFiles(folder, limit)
    files.prepare()
    return await files.save(Slots(folder, *tokens).post, "key", list(enumerate(tokens)))


async def refused(folder: Path) -> int:
    """One slot has pictures, and what another was said to have was just thrown out."""
    files = SlotFiles(folder, 10**6)
    return await files.save(Slots(folder, 100, -1, 0, 200).post, "key", [(slot, 100) for slot in range(4)])


def modes_of(folder: Path) -> dict[str, int]:
    paths = {"": folder, **{path.name: path for path in folder.iterdir()}}
    return {name: stat.S_IMODE(path.stat().st_mode) for name, path in paths.items()}


async def restored(folder: Path, key: str = "key") -> dict[int, bytes]:
    engine = Slots(folder)
    tokens = await SlotFiles(folder, 10**6).restore(engine.post, key)
    assert tokens == sum(map(len, engine.restored.values())) // PER_TOKEN
    return engine.restored


async def test_what_was_saved_comes_back_once_and_is_for_its_user_only(tmp_path: Path) -> None:
    assert await saved(tmp_path, 100, 200) == 300
    assert modes_of(tmp_path) == {"": 0o700, "index.json": 0o600, "slot-0.bin": 0o600, "slot-1.bin": 0o600}
    assert await restored(tmp_path) == {0: b"0" * 1000, 1: b"1" * 2000}
    assert os.listdir(tmp_path) == []
    assert await restored(tmp_path) == {}


async def test_another_key_restores_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    await saved(tmp_path, 100)
    assert await restored(tmp_path, "another") == {}
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["shorter", "longer", "changed", "gone"])
async def test_a_damaged_file_is_not_read(tmp_path: Path, damage: str) -> None:
    await saved(tmp_path, 100, 200)
    path = tmp_path / "slot-0.bin"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"shorter": content[:-1], "longer": content + b"0", "changed": b"x" + content[1:]}[damage])
    assert await restored(tmp_path) == {1: b"1" * 2000}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"key": "key", "slots": [{"slot": 1}]}'])
async def test_an_index_that_is_not_understood_restores_nothing(tmp_path: Path, content: bytes) -> None:
    await saved(tmp_path, 100)
    (tmp_path / "index.json").write_bytes(content)
    assert await restored(tmp_path) == {}
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("limit", "tokens"), [(999, 0), (1000, 100), (2999, 100), (3000, 300), (10_000, 300)])
async def test_no_more_is_kept_than_the_limit(tmp_path: Path, limit: int, tokens: int) -> None:
    assert await saved(tmp_path, 100, 200, 50, limit=limit) == tokens  # 50 are not worth a file
    assert sum(map(len, (await restored(tmp_path)).values())) == tokens * PER_TOKEN


async def test_a_slot_that_cannot_be_saved_costs_no_other(tmp_path: Path) -> None:
    assert await refused(tmp_path) == 300
    assert sorted(await restored(tmp_path)) == [0, 3]


def test_folders_of_other_models_go_when_they_are_too_large(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old")):
        folder = folder_of(tmp_path, tmp_path / name, 10**6)
        folder.mkdir(parents=True)
        (folder / "slot-0.bin").write_bytes(b"x" * 300)
        os.utime(folder, (1000 - age, 1000 - age))
    mine = folder_of(tmp_path, tmp_path / "mine", 700)
    assert list(mine.parent.iterdir()) == [folder_of(tmp_path, tmp_path / "new", 10**6)]


def test_the_identity_changes_with_the_files_and_whatever_else_counts(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"one")
    os.utime(model, (1, 1))
    before = identity([model], "build", 4096)
    assert identity([model], "build", 4096) == before
    model.write_bytes(b"two")
    os.utime(model, (1, 1))
    others = [identity([model], "build", 4096)]
    model.write_bytes(b"one")
    others.append(identity([model], "build", 4096))
    os.utime(model, (1, 1))
    others += [identity([model], "other", 4096), identity([model], "build", 8192), identity([model, model])]
    assert before not in others
    assert len(set(others)) == len(others)


async def cached(small_gguf: Path, folder: Path, texts: list[str], **options: Any) -> list[int]:
    """What a new engine has of these prompts in its cache, asked one after the other."""
    runtime = LlamaCpp(model_path=small_gguf, state_dir=folder, slots=2, keep_on_disk=10**8, **options)
    await runtime.start(print)
    found = []
    for text in texts:
        prompt = Prompt(tuple(await runtime.encode([text])), ChatRequest(id="test"))
        async with aclosing(runtime.generate(prompt, Sampling(max_tokens=4, temperature=0.0))) as items:
            found.append([item.cached_tokens async for item in items if isinstance(item, Prefill)][-1])
    await runtime.stop()
    return found


async def test_two_conversations_survive_a_restart_but_not_another_context(small_gguf: Path, tmp_path: Path) -> None:
    one, two = "The lighthouse keeper counts ships. " * 15, "Bread needs flour, water and salt. " * 15
    assert await cached(small_gguf, tmp_path, [one, two], context=512) == [0, 0]
    first, second = await cached(small_gguf, tmp_path, [two + "And yeast.", one + "And gulls."], context=512)
    assert first > 80
    assert second > 80
    assert await cached(small_gguf, tmp_path, [one], context=768) == [0]


async def test_an_engine_that_dies_of_a_file_is_a_failure_that_a_restart_cures(
    small_gguf: Path, tmp_path: Path
) -> None:
    text = "The lighthouse keeper counts ships. " * 15
    assert await cached(small_gguf, tmp_path, [text], context=512) == [0]
    folder = folder_of(tmp_path, small_gguf, 10**8)
    cut_off(folder)
    with pytest.raises(RuntimeFailure):  # llama.cpp aborts
        await cached(small_gguf, tmp_path, [text], context=512)
    assert await cached(small_gguf, tmp_path, [text], context=512) == [0]


def cut_off(folder: Path) -> None:
    """Cut the file of a slot off, with the checksum of what is left in the index: so it is read."""
    index = json.loads((folder / "index.json").read_text())
    (slot,) = index["slots"]
    path = folder / f"slot-{slot['slot']}.bin"
    left = path.read_bytes()[:-1000]
    path.write_bytes(left)
    index["slots"] = [{**slot, "size": len(left), "crc": zlib.crc32(left)}]
    (folder / "index.json").write_text(json.dumps(index))
