"""Reports the progress of long work: to a log as plain lines, to another program as JSON lines.

The bar for terminals is in commands/progress.py, which needs rich. All sizes are in bytes.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TextIO


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress at one moment. `seconds` since the start; `resumed`: bytes that were there before."""

    action: str
    files: int = 0
    total_files: int = 0
    bytes: int = 0
    total_bytes: int = 0
    resumed: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return (self.bytes - self.resumed) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        return (self.total_bytes - self.bytes) / self.rate if self.rate > 0 else None


class ProgressSink(Protocol):
    def stage(self, text: str) -> None:
        """Report a stage without a measurable progress."""

    def update(self, progress: Progress) -> None:
        """Report progress. Called often, from one thread at a time; the sink decides what to show."""


class LogSink:
    """Writes plain lines: each stage, and the progress at most every `interval` seconds."""

    def __init__(self, out: TextIO, *, interval: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._interval, self._clock = out, interval, clock
        self._last = clock()

    def stage(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def update(self, progress: Progress) -> None:
        finished = progress.bytes == progress.total_bytes and progress.files == progress.total_files
        if finished or self._clock() - self._last >= self._interval:
            self._last = self._clock()
            self.stage(describe(progress))


class JsonSink:
    """Writes one JSON object per line, at most every `interval` seconds: {"status", "completed", "total", ...}."""

    def __init__(self, out: TextIO, *, interval: float = 0.2, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._interval, self._clock = out, interval, clock
        self._last = -interval

    def stage(self, text: str) -> None:
        self.write({"status": text})

    def update(self, progress: Progress) -> None:
        finished = progress.bytes == progress.total_bytes and progress.files == progress.total_files
        if finished or self._clock() - self._last >= self._interval:
            self._last = self._clock()
            self.write(
                {
                    "status": progress.action,
                    "completed": progress.bytes,
                    "total": progress.total_bytes,
                    "files": progress.files,
                    "total_files": progress.total_files,
                }
            )

    def write(self, line: dict[str, object]) -> None:
        print(json.dumps(line, ensure_ascii=False), file=self._out, flush=True)


class Tally:
    """Adds up the progress of several threads and passes it on to a sink."""

    def __init__(self, sink: ProgressSink, action: str, total_files: int, total_bytes: int, resumed: int = 0) -> None:
        self._sink, self._resumed = sink, resumed
        self._progress = Progress(action, total_files=total_files, bytes=resumed, total_bytes=total_bytes)
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def add_bytes(self, count: int) -> None:
        """Add bytes; negative when downloaded bytes were discarded."""
        self._add(0, count)

    def add_file(self) -> None:
        self._add(1, 0)

    def _add(self, files: int, count: int) -> None:
        with self._lock:
            there = self._progress.bytes + count
            self._progress = replace(
                self._progress,
                files=self._progress.files + files,
                bytes=there,
                resumed=min(self._resumed, there),
                seconds=time.monotonic() - self._began,
            )
            self._sink.update(self._progress)


def describe(progress: Progress) -> str:
    percent = 100 * progress.bytes // progress.total_bytes if progress.total_bytes else 100
    parts = [
        f"{progress.action}: {progress.files} of {progress.total_files} files",
        f"{human_bytes(progress.bytes)} of {human_bytes(progress.total_bytes)} ({percent}%)",
    ]
    if progress.rate > 0:
        parts.append(f"{human_bytes(progress.rate)}/s")
    if progress.seconds_left:
        parts.append(f"{human_time(progress.seconds_left)} left")
    return ", ".join(parts)


def human_bytes(count: float) -> str:
    """Write a size in powers of 1000, like 98.4 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def human_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
