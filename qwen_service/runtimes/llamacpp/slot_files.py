"""Keeps the KV cache of llama.cpp's last conversations on disk, from a polite stop to the next start.

There is a file for each slot, and an index. The index is written last and removed before the first file is read, so an
engine that crashes on a file starts without it the next time. llama.cpp checks little of what it reads, and aborts when a
file is cut off, so each has a checksum. The index has a key of everything that must be unchanged: the model's files, the
program, the context. Only the service's user can read the folder: the files contain what people wrote.
"""

import asyncio
import hashlib
import json
import logging
import shutil
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_service.runtimes.local_http import HttpError

log = logging.getLogger(__name__)

Post = Callable[[str, Any], Awaitable[Any]]
INDEX = "index.json"
MIB = 1 << 20
FOLDER = "llamacpp-slots"  # in state_dir
SHORTEST = 64  # tokens; computing fewer again is as fast as reading them
SAVE_WITHIN = 10.0  # seconds; systemd kills the service 30 s after it was asked to stop


@dataclass(frozen=True, slots=True)
class SlotFile:
    slot: int
    tokens: int
    size: int  # bytes
    crc: int

    @property
    def name(self) -> str:
        return f"slot-{self.slot}.bin"


class SlotFiles:
    """The files. `limit`: bytes of all files together."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._limit = limit

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)

    async def save(self, post: Post, key: str, slots: Sequence[tuple[int, int]]) -> int:
        """Save slots (slot, tokens), the most important first, as far as limit and time allow. Returns the number of tokens saved."""
        ends = time.monotonic() + SAVE_WITHIN
        self._remove_all()
        saved: list[SlotFile] = []
        for slot, tokens in slots:
            taken = sum(file.size for file in saved)
            per_token = max((file.size / file.tokens for file in saved), default=0.0)
            if taken + per_token * tokens > self._limit or time.monotonic() > ends:
                break
            if tokens >= SHORTEST and (file := await self._save(post, slot)) is not None:
                if taken + file.size > self._limit:
                    (self.folder / file.name).unlink()
                    break
                saved.append(file)
        if saved:
            index = self.folder / INDEX
            index.touch(0o600)
            index.write_text(json.dumps({"key": key, "slots": list(map(asdict, saved))}))
        return sum(file.tokens for file in saved)

    async def restore(self, post: Post, key: str) -> int:
        """Load all files into the slots and delete them. Returns the number of tokens that the slots now hold."""
        restored = 0
        for file in self._take(key):
            path = self.folder / file.name
            if await asyncio.to_thread(_checksum, path) != (file.size, file.crc):
                log.warning("%s is damaged; its conversation is not restored", path)
                continue
            try:
                answer = await post(f"/slots/{file.slot}?action=restore", {"filename": file.name})
            except HttpError as error:  # the slot then stays empty
                log.warning("llama.cpp could not restore %s: %s", path, error)
                continue
            restored += int(answer["n_restored"])
        self._remove_all()
        return restored

    async def _save(self, post: Post, slot: int) -> SlotFile | None:
        path = self.folder / f"slot-{slot}.bin"
        path.touch(0o600)
        try:
            saved = (await post(f"/slots/{slot}?action=save", {"filename": path.name}))["n_saved"]
        except (HttpError, OSError) as error:  # for example a slot with pictures, or a full disk
            log.warning("llama.cpp could not save slot %d: %s", slot, error)
            saved = 0
        if not saved:
            path.unlink()
            return None
        size, crc = await asyncio.to_thread(_checksum, path)
        return SlotFile(slot, saved, size, crc)

    def _take(self, key: str) -> list[SlotFile]:
        index = self.folder / INDEX
        try:
            content = json.loads(index.read_bytes())
            index.unlink()
            if content["key"] != key:
                log.info("the last conversations are not restored: the model, the engine or the context has changed")
                return []
            return [SlotFile(**entry) for entry in content["slots"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            log.warning("the last conversations are not restored: %s does not have the expected form: %r", index, error)
            return []

    def _remove_all(self) -> None:
        for path in self.folder.glob("*"):
            path.unlink()


def folder_of(state_dir: Path, model: Path, limit: int) -> Path:
    """The folder of this model. Folders of other models are deleted, the oldest first, until all are within `limit` bytes."""
    parent = state_dir / FOLDER
    mine = parent / hashlib.blake2b(str(model.absolute()).encode(), digest_size=8).hexdigest()
    others = [path for path in parent.glob("*") if path != mine]
    sizes = {path: sum(file.stat().st_size for file in path.glob("*")) for path in others}
    for path in sorted(others, key=lambda path: path.stat().st_mtime):
        if sum(sizes.values()) > limit // 2:
            del sizes[path]
            shutil.rmtree(path)
    return mine


def forget_all(state_dir: Path) -> None:
    if (folder := state_dir / FOLDER).exists():
        shutil.rmtree(folder)


def identity(files: Iterable[Path], *others: object) -> str:
    """A digest that changes with any of these files: of size, time of change, and the first and last bytes."""
    digest = hashlib.blake2b(repr(others).encode(), digest_size=16)
    for path in files:
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        with path.open("rb") as file:
            digest.update(file.read(MIB))
            file.seek(max(0, status.st_size - MIB))
            digest.update(file.read(MIB))
    return digest.hexdigest()


def _checksum(path: Path) -> tuple[int, int]:
    size = crc = 0
    try:
        with path.open("rb") as file:
            while block := file.read(MIB):
                size, crc = size + len(block), zlib.crc32(block, crc)
    except FileNotFoundError:
        return 0, 0
    return size, crc
