"""Processes that carry a mark in their environment, as all do that were started by a process with it.

For a tree of daemons that no parent holds together. A mark is exact where a name, a group or a pid file is not. A process
that writes its title over its environment loses its mark: so the children of those that have it count, too.
"""

import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL = 0.1  # seconds
KILL_PATIENCE = 5.0  # seconds after SIGKILL


@dataclass(frozen=True, slots=True)
class Process:
    """`began` is in ticks since the boot: two processes that get the same pid differ in it."""

    pid: int
    parent: int
    name: str
    began: int


def marked(name: str, value: str) -> set[Process]:
    """This user's processes whose environment has name=value, and all that descend from them."""
    mark = f"{name}={value}".encode()
    processes = _all()
    found = {process for process in processes if _has(process, mark)}
    while more := {process for process in processes - found if any(process.parent == other.pid for other in found)}:
        found |= more
    return found


def end_marked(name: str, value: str, *, last: Collection[str] = (), patience: float = 10.0) -> tuple[int, int]:
    """SIGTERM to all but those named in `last`, and SIGKILL to what is left after `patience` seconds.

    Returns how many there were, and how many are stuck in the kernel and still there.
    """
    first = marked(name, value)

    def left() -> set[Process]:
        return marked(name, value) | (first & _all())

    for process in first:
        if process.name not in last:
            _signal(process, signal.SIGTERM)
    _wait(lambda: all(process.name in last for process in left()), patience)
    for process in left():
        _signal(process, signal.SIGKILL)
    _wait(lambda: not left(), KILL_PATIENCE)
    return len(first), len(left())


def _all() -> set[Process]:
    """Without this one, and without zombies."""
    found = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):  # it has just ended
            process = _process((folder / "stat").read_text(errors="replace"))
            found |= {process} if process is not None else set()
    return found


def _process(stat: str) -> Process | None:
    """proc(5): pid (name) state parent ... began as the 22nd. The name may have spaces and parentheses. None: a zombie."""
    before, _, after = stat.rpartition(")")
    pid, _, name = before.partition(" (")
    fields = after.split()
    return None if fields[0] == "Z" else Process(int(pid), int(fields[1]), name, int(fields[19]))


def _has(process: Process, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:  # another user's, or it has just ended
        return False


def _wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(POLL)


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(process.pid, number)
