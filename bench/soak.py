"""An hour at full queue: what memory, handles, threads, children and waiting times do meanwhile.

    python -m bench.soak [--seconds 3600] [--every 60] [--target ax_repl] [--tokenizer FOLDER] [--json FILE]

The service runs as a user starts it, `serve --simulate`, so the vendor's program is a simulator and the rest is real.
Its line is kept full by clients that stream, wait, talk in turns, use Ollama's API, and leave: in the line and in
mid-reply. Exit status 1: a wrong answer, a warning in the service's log, a process left behind, or no end by itself.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.soak_clients import Clients

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"ax_repl": "qwen2.5-1.5b-instruct", "ax_api": "qwen3-4b"}
QUEUE, SLOTS, SURPLUS = 16, 1, 2
ENDED = (0, -signal.SIGTERM)  # uvicorn raises the signal once more when all has ended well
STARTING, STOPPING = 90.0, 90.0  # seconds
COLUMNS = ("seconds", "rss_mb", "files", "threads", "children", "running", "waiting", "answered", "refused", "left",
           "wait_p50", "wait_p99", "ttft_p50", "ttft_p99", "status")  # fmt: skip


@dataclass(frozen=True)
class Sample:
    seconds: float
    rss_mb: float
    files: float  # open handles
    threads: float
    children: int
    state_files: int  # in the state folder: sockets, PID files
    running: int
    waiting: int
    answered: int
    refused: int
    left: int
    faults: int
    restarts: int
    status: str
    wait_p50: float  # seconds, of the replies since the sample before, as the service logged them; so are the next
    wait_p99: float
    ttft_p50: float
    ttft_p99: float


class Service:
    def __init__(self, model: str, folder: Path, token_ms: float) -> None:
        command = [sys.executable, "-m", "qwen_service", "serve", "--simulate", model, "--port", "0",
                   "--host", "127.0.0.1", "--tokenizer-port", "0", "--queue-size", str(QUEUE), "--log-format", "json",
                   "--trusted-proxies", "127.0.0.1", "--state-dir", str(folder / "state"),
                   "--models-dir", str(folder / "models"), "--log-dir", str(folder / "logs")]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QWEN_")}
        pace = {"SIM_REPLY": "echo", "SIM_TOKEN_MS": str(token_ms), "SIM_TOKEN": str(token_ms / 1000)}
        self._log = folder / "service.log"
        self._read = 0
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment | pace, stdout=log, stderr=log)
        self.pid = self.process.pid

    async def url(self) -> str:
        async with asyncio.timeout(STARTING):
            while (found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", self._log.read_text())) is None:
                if self.process.poll() is not None:
                    raise SystemExit(self._log.read_text())
                await asyncio.sleep(0.1)
        return found[1]

    def log_lines(self) -> list[dict[str, Any]]:
        """Those that are new."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            whole, _, _ = log.read().rpartition(b"\n")
        self._read += len(whole) + bool(whole)
        return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]

    def children(self) -> list[int]:
        found: list[int] = []
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(OSError):  # it has just ended
                found += map(int, (thread / "children").read_text().split())
        return found

    def figures(self) -> dict[str, float]:
        status = dict(re.findall(r"(\w+):\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text()))
        files = len(os.listdir(f"/proc/{self.pid}/fd"))
        return {"rss_mb": int(status["VmRSS"]) / 1024, "files": files, "threads": int(status["Threads"])}

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, STOPPING)


@dataclass
class Soak:
    service: Service
    state_dir: Path
    http: httpx.AsyncClient
    clients: Clients
    samples: list[Sample] = field(default_factory=list)
    complaints: list[dict[str, Any]] = field(default_factory=list)  # of the service's log
    started: float = field(default_factory=time.monotonic)

    async def run(self, seconds: float, every: float) -> None:
        users = [asyncio.create_task(self.clients.ask_for_ever()) for _ in range(QUEUE + SLOTS + SURPLUS)]
        try:
            for moment in range(round(seconds / every) + 1):
                await asyncio.sleep(max(0.0, self.started + moment * every - time.monotonic()))
                await self.sample()
        finally:
            for user in users:
                user.cancel()
            await asyncio.gather(*users, return_exceptions=True)
        await self.idle()
        await self.sample()

    async def idle(self) -> None:
        """The clients have gone: no place in the line and no slot may be left."""
        async with asyncio.timeout(30):
            await self.until(lambda health: not any(health["details"]["queue"][key] for key in ("running", "waiting")))

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        while not condition(await self.health()):  # noqa: ASYNC110 - another process: only the clock helps
            await asyncio.sleep(0.2)

    async def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = (await self.http.get("/health")).json()
        return answer

    async def sample(self) -> None:
        (await self.http.get("/metrics")).raise_for_status()
        health = await self.health()
        lines = self.service.log_lines()
        self.complaints += [line for line in lines if line["level"] in ("warning", "error")]
        replies = [line for line in lines if line.get("finish", "cut") != "cut"]
        outcomes = self.clients.outcomes
        queue = health["details"]["queue"]
        sample = Sample(
            seconds=round(time.monotonic() - self.started, 1),
            **self.service.figures(),
            children=len(self.service.children()),
            state_files=sum(1 for _ in self.state_dir.rglob("*")),
            running=queue["running"], waiting=queue["waiting"],
            answered=outcomes["answered"], refused=sum(outcomes[f"refused {status}"] for status in (429, 503)),
            left=outcomes["left the line"] + outcomes["left the reply"], faults=outcomes["faults"],
            restarts=health["details"]["model"]["restarts"], status=health["status"],
            **percentiles("wait", [line["queue"] for line in replies]),
            **percentiles("ttft", [line["ttft"] for line in replies if "ttft" in line]),
        )  # fmt: skip
        self.samples.append(sample)
        print(row(sample), flush=True)


def alive(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [0.0] * 99
    return {f"{name}_p50": cuts[49], f"{name}_p99": cuts[98]}


def row(sample: Sample) -> str:
    values = asdict(sample)
    return " ".join(f"{v:9.2f}" if isinstance(v := values[name], float) else f"{v:>9}" for name in COLUMNS)


def prepare(model: str, tokenizer: Path | None, folder: Path) -> None:
    """Without a tokenizer at hand the service fetches one."""
    if tokenizer is not None:
        name = {"qwen2.5-1.5b-instruct": "qwen2.5_tokenizer", "qwen3-4b": "qwen3_tokenizer"}[model]
        place = folder / "state" / "simulated" / model / name
        place.mkdir(parents=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / file, place)


async def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = TARGETS[options.target]
    prepare(model, options.tokenizer, folder)
    service = Service(model, folder, options.token_ms)
    try:
        url = await service.url()
        async with httpx.AsyncClient(base_url=url, timeout=30) as http, asyncio.timeout(options.seconds + 180):
            run = Soak(service, folder / "state", http, Clients(url, model, QUEUE + SLOTS + SURPLUS))
            async with asyncio.timeout(STARTING):
                await run.until(lambda health: health["status"] == "ok")
            run.started = time.monotonic()
            print(" ".join(f"{name:>9}" for name in COLUMNS))
            await run.run(options.seconds, options.every)
            await run.clients.close()
        children = service.children()
        code = await service.stop()
    finally:
        if service.process.poll() is None:
            service.process.kill()
    return {"samples": [asdict(sample) for sample in run.samples], "outcomes": run.clients.outcomes, "exit": code,
            "faults": run.clients.faults, "complaints": run.complaints, "processes_left": alive(children)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="The service at full queue for long.")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--every", type=float, default=60, help="seconds between two samples")
    parser.add_argument("--target", choices=TARGETS, default="ax_repl")
    parser.add_argument("--token-ms", type=float, default=10, help="of the simulated card, for each token")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json and tokenizer_config.json")
    parser.add_argument("--json", type=Path, help="where to write all samples")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qwen-soak-") as folder:
        result = asyncio.run(soak(options, Path(folder)))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    print({name: value for name, value in result.items() if name != "samples"})
    wrong = result["faults"] or result["complaints"] or result["exit"] not in ENDED or result["processes_left"]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
