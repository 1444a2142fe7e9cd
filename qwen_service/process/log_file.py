"""A log of raw bytes that is bounded in size and never raises into the code that writes to it.

At `max_bytes` the file becomes `NAME.1` and a new one is begun, so at most twice that is on the disk.
A full or vanished disk is reported once; lines that cannot be written are dropped; writing resumes by itself.
"""

import logging
import os
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)


class LogFile:
    def __init__(self, path: Path, max_bytes: int = 2 * 1024 * 1024) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._broken = False

    def write(self, data: bytes) -> None:
        try:
            self._append(data)
            self._broken = False
        except OSError as error:
            self.close()
            first, self._broken = not self._broken, True
            if first:  # _broken is set first: the warning itself may be written to this file
                logger.warning("%s cannot be written; its lines are lost until it can: %s", self._path, error.strerror)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, data: bytes) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        if self._file.tell() + len(data) > self._max_bytes:
            self._file = self._rotate(self._file)
        self._file.write(data[-self._max_bytes :])

    def _rotate(self, full: BinaryIO) -> BinaryIO:
        full.close()
        os.replace(self._path, self._path.with_name(self._path.name + ".1"))
        return self._path.open("ab", buffering=0)
