"""The service's process as the system sees it: start, engine, memory, handles, end."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

REPLY = {"SIM_REPLY": "echo"}


@dataclass(frozen=True)
class Sample:
    rss: int  # bytes
    files: int
    threads: int


class Service:
    def __init__(self, target: str, folder: Path, **environment: str) -> None:
        self.target = target
        self._log = folder / "stderr.log"
        self._cards = folder / "cards.json"
        card = {"SIM_CARDS": str(self._cards), "SIM_PORT": str(_free_port())}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.target", target, str(folder)],
                cwd=ROOT,
                env={**os.environ, **REPLY, **card, **environment},
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    async def url(self) -> str:
        async with asyncio.timeout(60):
            while (found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", self.log)) is None:
                assert self.alive, self.log
                await asyncio.sleep(0.05)  # another process: only the clock helps
        return found[1]

    def tokenizer_port(self) -> int | None:
        found = re.findall(r"listening on http://127\.0\.0\.1:(\d+)", self.log)
        return int(found[-1]) if len(found) > 1 else None

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in _read(task).split()]

    def engines(self) -> list[int]:
        """The programs that hold a model. A child that has not yet become its program is none, nor is an axcl-smi."""
        own = _read(self._proc / "cmdline")
        lines = {child: _read(Path(f"/proc/{child}/cmdline")) for child in self.children()}
        return [child for child, line in lines.items() if line not in ("", own) and "axcl-smi" not in line]

    def lose_card(self) -> None:
        """axcl-smi hangs from now on, until it is asked to reboot the card."""
        self._cards.write_text('{"cards": [{"dead": true}]}')

    def sample(self) -> Sample:
        status = dict(line.split(":\t", 1) for line in _read(self._proc / "status").splitlines() if ":\t" in line)
        return Sample(
            int(status["VmRSS"].split()[0]) * 1024, len(list((self._proc / "fd").iterdir())), int(status["Threads"])
        )

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, 60)

    @property
    def _proc(self) -> Path:
        return Path(f"/proc/{self.process.pid}")


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has just ended
        return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
