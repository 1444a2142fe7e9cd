"""Processes that carry a mark in their environment, as all do that were started by a process with it.

For a tree of daemons that no parent holds together. A mark is exact where a name, a group or a pid file is not.
"""

import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

POLL = 0.1  # seconds
KILL_PATIENCE = 5.0  # seconds after SIGKILL


def marked(name: str, value: str, root: Path = Path("/proc")) -> dict[int, str]:
    """pid -> name of this user's processes whose environment has name=value."""
    mark = f"{name}={value}".encode()
    found = {}
    for folder in root.iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "comm").read_text().strip()
        except OSError:  # another user's, or it has just ended
            continue
    return found


def end_marked(name: str, value: str, *, last: Collection[str] = (), patience: float = 10.0) -> tuple[int, int]:
    """SIGTERM to all but those named in `last`, and SIGKILL to what is left after `patience` seconds.

    Returns how many there were, and how many are stuck in the kernel and still there.
    """
    first = marked(name, value)
    for pid, program in first.items():
        if program not in last:
            _signal(pid, signal.SIGTERM)
    _wait(lambda: all(program in last for program in marked(name, value).values()), patience)
    for pid in marked(name, value):
        _signal(pid, signal.SIGKILL)
    _wait(lambda: not marked(name, value), KILL_PATIENCE)
    return len(first), len(marked(name, value))


def _wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(POLL)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(pid, number)
