"""Remembers, over restarts, with which ids most conversations with a model begin: a file in state_dir, for its user only.

The ids are those of system messages and tools, never of what a user has written.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

Ids = tuple[int, ...]
NAME = "warm-heads.json"
MOST_MODELS = 8


@dataclass(frozen=True, slots=True)
class StoredHead:
    head: bytes  # digest
    ids: Ids


class HeadFile:
    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def take(self, model: str) -> StoredHead | None:
        """The head of this model. It is gone from the file until it is put back: an engine that dies of it comes up."""
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
            content = json.loads(self._path.read_bytes())
            return {
                str(model): StoredHead(bytes.fromhex(entry["head"]), tuple(map(int, entry["ids"])))
                for model, entry in content.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read, and is begun anew: %s", self._path, error)
            return {}

    def _write(self, heads: Mapping[str, StoredHead]) -> None:
        content = {model: {"head": stored.head.hex(), "ids": stored.ids} for model, stored in heads.items()}
        fresh = self._path.with_suffix(".new")
        try:
            fresh.unlink(missing_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
            fresh.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)
