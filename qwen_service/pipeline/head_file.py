"""Remembers over restarts how prompts begin: two files in state_dir, readable by its user only.

One has the token ids of the system message and tools that most conversations with a model begin with, never of a user's
text; the other has digests of the lines of system messages that move (stable_prefix.py).
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_service.pipeline.warm_policy import Ids

log = logging.getLogger(__name__)

NAME = "warm-heads.json"
LINES = "moving-lines.json"
MOST_MODELS = 8


@dataclass(frozen=True, slots=True)
class StoredHead:
    head: bytes  # digest
    ids: Ids


class HeadFile:
    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def take(self, model: str) -> StoredHead | None:
        """Take the head of this model out of the file. If it crashes the engine, the next start does without it."""
        heads = self._read()
        found = heads.pop(model, None)
        if found is not None:
            self._write(heads)
        return found

    def put(self, model: str, head: StoredHead) -> None:
        heads = {name: other for name, other in self._read().items() if name != model}
        kept = dict(list(heads.items())[-MOST_MODELS + 1 :])
        self._write({**kept, model: head})

    def _read(self) -> dict[str, StoredHead]:
        try:
            return {
                str(model): StoredHead(bytes.fromhex(entry["head"]), tuple(map(int, entry["ids"])))
                for model, entry in _content(self._path, {}).items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s does not have the expected form; a new file replaces it: %r", self._path, error)
            return {}

    def _write(self, heads: Mapping[str, StoredHead]) -> None:
        _replace(self._path, {model: {"head": stored.head.hex(), "ids": stored.ids} for model, stored in heads.items()})


class LineFile:
    def __init__(self, folder: Path) -> None:
        self._path = folder / LINES

    def read(self) -> list[str]:
        content = _content(self._path, [])
        return [str(digest) for digest in content] if isinstance(content, list) else []

    def write(self, digests: list[str]) -> None:
        _replace(self._path, digests)


def _content(path: Path, nothing: Any) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return nothing
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read; a new file replaces it: %s", path, error)
        return nothing


def _replace(path: Path, content: Any) -> None:
    fresh = path.with_suffix(".new")
    try:
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
        fresh.replace(path)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)
