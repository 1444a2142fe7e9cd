"""The service of a soak as the system sees it: start, log, memory, handles, threads, children, end."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.load.processes import resident_mb
from qwen_service.models.catalog import Catalog

ROOT = Path(__file__).resolve().parent.parent
QUEUE = 16  # requests that may wait
STARTING, STOPPING = 90.0, 90.0  # seconds


class Service:
    def __init__(self, model: str, folder: Path, token_ms: float) -> None:
        command = [sys.executable, "-m", "qwen_service", "serve", "--simulate", model, "--port", "0",
                   "--host", "127.0.0.1", "--tokenizer-port", "0", "--queue-size", str(QUEUE), "--log-format", "json",
                   "--trusted-proxies", "127.0.0.1", "--state-dir", str(folder / "state"),
                   "--models-dir", str(folder / "models"), "--log-dir", str(folder / "logs")]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QWEN_")}
        pace = {
            "SIM_REPLY": "echo",
            "SIM_TOKEN_MS": str(token_ms),
            "SIM_TOKEN": str(token_ms / 1000),
            "SIM_STEP": str(token_ms / 100),
        }
        self._log = folder / "service.log"
        self._read = 0
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment | pace, stdout=log, stderr=log)
        self.pid = self.process.pid

    async def url(self) -> str:
        return await listening_url(self.process, self._log)

    def log_lines(self) -> list[dict[str, Any]]:
        """Those that are new."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            whole, _, _ = log.read().rpartition(b"\n")
        self._read += len(whole) + bool(whole)
        return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.pid).children()]

    def figures(self) -> dict[str, float]:
        process = psutil.Process(self.pid)
        return {"rss_mb": resident_mb(self.pid), "files": process.num_fds(), "threads": process.num_threads()}

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, STOPPING)


async def listening_url(process: subprocess.Popen[bytes], log: Path) -> str:
    def url() -> str:
        found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", log.read_text())
        if found is None and process.poll() is not None:
            raise SystemExit(log.read_text())
        return found[1] if found else ""

    async with asyncio.timeout(STARTING):
        while not (found := url()):  # noqa: ASYNC110 - only its log tells
            await asyncio.sleep(0.1)
    return found


def alive(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid)]


def lay_tokenizer(model: str, tokenizer: Path, folder: Path) -> None:
    """To where the service looks for it before it fetches one."""
    place = folder / "state" / "simulated" / model / str(Catalog.load(folder).find(model).tokenizer)
    place.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, place)
