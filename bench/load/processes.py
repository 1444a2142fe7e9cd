"""Memory of a server's processes, when it runs on this machine: who listens on the port, and its descendants."""

from collections.abc import Iterator
from contextlib import suppress

import psutil

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ServerMemory:
    """Of the server on one port. Finding it means reading every process's files, so it is found once."""

    def __init__(self, host: str, port: int) -> None:
        self._here = host in LOOPBACK
        self._port = port
        self._owners: list[psutil.Process] = []

    def resident(self) -> int | None:
        """Bytes of the listener and its descendants; None when it is not here or not ours to see."""
        if not self._here:
            return None
        if not any(owner.is_running() for owner in self._owners):
            self._owners = list(_listeners(self._port))
        family = {one for owner in self._owners for one in _with_descendants(owner)}
        return sum(map(_resident, family)) or None


def resident_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss / 2**20)


def _resident(process: psutil.Process) -> int:
    """0 when it has ended, or is another user's."""
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _listeners(port: int) -> Iterator[psutil.Process]:
    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        if listens and connection.pid is not None:
            with suppress(psutil.NoSuchProcess):
                yield psutil.Process(connection.pid)


def _with_descendants(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []
