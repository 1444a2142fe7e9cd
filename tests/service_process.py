"""The service as a process of its own, as a user starts it, with the real embedded model."""

import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.preloaded import Started, start

PATIENCE = 90.0  # seconds: ten times what a start takes on a busy machine


class ServiceProcess:
    def __init__(self, process: Started, log: Path) -> None:
        self.process = process
        self.log = log
        self.url = ""
        self.http = httpx.Client(timeout=PATIENCE, verify=False)  # no TLS here: reading the CAs takes 50 ms

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what} took too long:\n{self.log.read_text()}"
            time.sleep(0.02)  # another process: nothing to wait for but the clock

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        if not self.url:
            found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", self.log.read_text())
            self.url = found[1] if found else ""
        return bool(self.url) and self.health()["status"] == "ok"

    def health(self) -> dict[str, Any]:
        document: dict[str, Any] = self.http.get(f"{self.url}/health").json()
        return document

    def workers(self) -> list[int]:
        return children(self.process.pid)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def service_process(*arguments: str) -> Iterator[ServiceProcess]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "output"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QWEN_")}
        command = ["serve", "--port", "0", "--host", "127.0.0.1"]
        command += ["--state-dir", f"{folder}/state", "--models-dir", f"{folder}/models", *arguments]
        with log.open("wb") as output, open(os.devnull, "rb") as nothing:
            files = [nothing.fileno(), output.fileno(), output.fileno()]
            process = start(*command, files=files, env=environment)
        service = ServiceProcess(process, log)
        try:
            service.until("starting", service.is_ready)
            yield service
        finally:
            if process.poll() is None:
                service.stop()
            service.http.close()
