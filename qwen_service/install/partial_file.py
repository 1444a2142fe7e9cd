"""A file that is being downloaded: it is continued after an interruption, and its sha256 is computed on the way."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

CHUNK = 1 << 20


class PartialFile:
    def __init__(self, path: Path, on_bytes: Callable[[int], object] = lambda _: None) -> None:
        """`on_bytes` is called at every change of the length, and may raise to stop the download."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._on_bytes = on_bytes
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._hash = hashlib.sha256()
        while block := self._file.read(CHUNK):
            self._hash.update(block)

    def __enter__(self) -> "PartialFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._on_bytes(len(data))

    def start_over(self) -> None:
        self._on_bytes(-self._file.tell())
        self._hash = hashlib.sha256()
        self._file.seek(0)
        self._file.truncate()

    def finish(self, target: Path) -> None:
        """Flush the file to disk, and give it its final name."""
        os.fsync(self._file.fileno())
        self._file.close()
        self.path.replace(target)


def sha256_of(path: Path, on_bytes: Callable[[int], object] = lambda _: None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()
