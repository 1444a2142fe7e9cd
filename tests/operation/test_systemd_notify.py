import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_service.operation.systemd import SystemdNotifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end of the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        yield listener


def notifier(manager: socket.socket) -> SystemdNotifier:
    return SystemdNotifier({"NOTIFY_SOCKET": manager.getsockname()})


def test_a_unit_that_is_ready_says_so_with_its_status(manager: socket.socket) -> None:
    notifier(manager).ready("qwen3-4b answers\non :8080")
    assert manager.recv(1000) == b"READY=1\nSTATUS=qwen3-4b answers on :8080"


def test_a_long_load_asks_for_more_time(manager: socket.socket) -> None:
    notifier(manager).loading("loading 17/31", 30)
    assert manager.recv(1000) == b"STATUS=loading 17/31\nEXTEND_TIMEOUT_USEC=30000000"


def test_stopping_and_status_are_told(manager: socket.socket) -> None:
    one = notifier(manager)
    one.status("restarting the engine")
    one.stopping()
    assert [manager.recv(1000), manager.recv(1000)] == [
        b"STATUS=restarting the engine",
        b"STOPPING=1\nSTATUS=stopping",
    ]


def test_an_abstract_socket_is_spoken_to() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0qwen-service-test-{os.getpid()}")
        listener.settimeout(10)
        SystemdNotifier({"NOTIFY_SOCKET": f"@qwen-service-test-{os.getpid()}"}).ready("yes")
        assert listener.recv(1000).startswith(b"READY=1")


def test_the_watchdog_is_told(manager: socket.socket) -> None:
    notifier(manager).alive()
    assert manager.recv(1000) == b"WATCHDOG=1"


def test_without_systemd_or_with_a_socket_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    SystemdNotifier({}).ready("nobody listens")
    SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("nobody listens")
