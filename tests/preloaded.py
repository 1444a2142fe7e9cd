"""`qwen-service`, started in 30 ms instead of 0.6 to 1.5 s: forked from a process that has imported all its modules.

Each worker of pytest has one such process. What it starts differs from a real start in two things: the imports are done,
and /proc shows the arguments and the environment of the process that forked. The tests of start_qwen.sh, of the packages,
of the systemd unit and of the page in front of the real service start it as users do.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module, reload
from typing import Any

import huggingface_hub.constants

from qwen_service.cli import COMMANDS, main
from tests import ROOT

LARGEST = 1 << 18  # bytes of a request: arguments and environment
STATUS = 4  # bytes


class Started:
    """A process that was forked, with the part of subprocess.Popen's interface that the tests use."""

    def __init__(self, reports: socket.socket, args: Sequence[str]) -> None:
        self._reports = reports
        self.args = ["qwen-service", *args]
        self.pid = self._next_report()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._reports], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._reports], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._next_report()
            self._reports.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _next_report(self) -> int:
        """First its PID, then its status, negative for a signal."""
        if not (report := self._reports.recv(STATUS)):
            raise ConnectionError("the process that forks has ended")
        return int.from_bytes(report, "little", signed=True)


def start(*arguments: str, files: Sequence[int], env: Mapping[str, str], new_session: bool = False) -> Started:
    """`qwen-service ARGUMENTS` in the root of the checkout. `files`: the descriptors of its stdin, stdout and stderr."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = {"arguments": arguments, "env": dict(env), "new_session": new_session}
    with its:
        socket.send_fds(_server(), [json.dumps(request).encode()], [*files, its.fileno()])
    return Started(ours, arguments)


def run(
    *arguments: str, env: Mapping[str, str], typed: bytes = b"", timeout: float = 100
) -> "subprocess.CompletedProcess[str]":
    """`typed`: its whole input. Raises subprocess.TimeoutExpired, and then kills it."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(typed)
        given.seek(0)
        started = start(*arguments, files=[file.fileno() for file in (given, out, err)], env=env)
        try:
            code = started.wait(timeout)
        finally:
            started.kill()
            started.wait()
        shown = []
        for file in (out, err):
            file.seek(0)
            shown.append(file.read().decode())
    return subprocess.CompletedProcess(started.args, code, *shown)


@cache
def _server() -> socket.socket:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, "-m", "tests.preloaded", str(its.fileno())]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)

    def end() -> None:
        ours.close()  # the process reads this as the end
        process.wait()

    atexit.register(end)
    return ours


# --- the process that forks ---


def serve(requests: socket.socket) -> int:
    """Fork a process for each request. In a child, returns its exit status; in the parent 0 when the tests have ended."""
    running: dict[int, socket.socket] = {}
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            woken.recv(LARGEST)
            _report(running)
        if requests in ready:
            content, files, _, _ = socket.recv_fds(requests, LARGEST, 4)
            if not content:
                return 0
            pid = os.fork()
            if not pid:
                for other in (requests, woken, waker, *running.values()):
                    other.close()
                return _become(json.loads(content), files)
            for descriptor in files[:3]:
                os.close(descriptor)
            running[pid] = socket.socket(fileno=files[3])
            running[pid].send(pid.to_bytes(STATUS, "little", signed=True))


def _report(running: dict[int, socket.socket]) -> None:
    """Tell of each child that has ended."""
    for pid in list(running):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            with running.pop(pid) as listener:
                listener.send(os.waitstatus_to_exitcode(status).to_bytes(STATUS, "little", signed=True))


def _become(request: dict[str, Any], files: list[int]) -> int:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if request["new_session"]:
        os.setsid()
    for number, descriptor in enumerate(files[:3]):
        os.dup2(descriptor, number)
    for descriptor in files:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    reload(huggingface_hub.constants)  # they are read from the environment
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    return main(request["arguments"])


def _preload() -> None:
    for module, _ in COMMANDS.values():
        import_module(f"qwen_service.commands.{module}")
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _preload()
    sys.exit(serve(socket.socket(fileno=int(sys.argv[1]))))
