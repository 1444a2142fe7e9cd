"""Memory of a server's processes, when it runs on this machine: who listens on the port, and its descendants."""

import os
from collections import defaultdict
from pathlib import Path

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LISTEN = "0A"  # st in /proc/net/tcp
PROC = Path("/proc")


class ServerMemory:
    """Of the server on one port. Finding it means reading every process's files, so it is found once."""

    def __init__(self, host: str, port: int) -> None:
        self._here = host in LOOPBACK
        self._port = port
        self._owners: set[int] = set()

    def resident(self) -> int | None:
        """Bytes of the listener and its descendants; None when it is not here or not ours to see."""
        if not self._here:
            return None
        if not any((PROC / str(pid)).exists() for pid in self._owners):
            inodes = _listening_inodes(self._port)
            self._owners = {pid for pid in _pids() if inodes & _socket_inodes(pid)}
        return sum(_resident(pid) for pid in _with_descendants(self._owners)) or None


def _pids() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in (PROC / "net/tcp", PROC / "net/tcp6"):
        for line in _read(table).splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes


def _socket_inodes(pid: int) -> set[str]:
    try:
        links = [os.readlink(entry) for entry in (PROC / str(pid) / "fd").iterdir()]
    except OSError:  # ended meanwhile, or another user's
        return set()
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def _with_descendants(roots: set[int]) -> set[int]:
    children = defaultdict(list)
    for pid in _pids():
        # After the name, which may hold anything: state, parent.
        fields = _read(PROC / str(pid) / "stat").rpartition(")")[2].split()
        if fields:
            children[int(fields[1])].append(pid)
    found, waiting = set(roots), list(roots)
    while waiting:
        new = [child for child in children[waiting.pop()] if child not in found]
        found.update(new)
        waiting += new
    return found


def _resident(pid: int) -> int:
    fields = _read(PROC / str(pid) / "statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
