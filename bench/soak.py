"""An hour at full queue: what memory, handles, threads, children and waiting times do meanwhile.

    python -m bench.soak [--seconds 3600] [--every 60] [--target ax_repl] [--tokenizer FOLDER] [--json FILE]

The service runs as a user starts it, `serve --simulate`, so the vendor's program is a simulator and the rest is real.
Its line is kept full by clients that stream, wait, talk in turns, use Ollama's API, and leave: in the line and in
mid-reply. Exit status 1: a wrong answer, a warning in the service's log, a process left behind, or no end by itself.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from bench.soak_clients import Clients
from bench.soak_figures import COLUMNS, Sample, percentiles, row, summary
from bench.soak_service import QUEUE, STARTING, Service, alive, lay_tokenizer

TARGETS = {"ax_repl": "qwen2.5-1.5b-instruct", "ax_api": "qwen3-4b"}
SLOTS, SURPLUS = 1, 2  # of the simulated card; clients more than there is room for
ENDED = (0, -signal.SIGTERM)  # uvicorn raises the signal once more when all has ended well


@dataclass
class Soak:
    service: Service
    state_dir: Path
    http: httpx2.AsyncClient
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


async def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = TARGETS[options.target]
    if options.tokenizer is not None:
        lay_tokenizer(model, options.tokenizer, folder)
    service = Service(model, folder, options.token_ms)
    try:
        url = await service.url()
        async with httpx2.AsyncClient(base_url=url, timeout=30) as http, asyncio.timeout(options.seconds + 180):
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
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="folder with tokenizer.json and tokenizer_config.json; without it the service fetches one",
    )
    parser.add_argument("--json", type=Path, help="where to write all samples")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qwen-soak-") as folder:
        result = asyncio.run(soak(options, Path(folder)))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    print(summary(result))
    wrong = result["faults"] or result["complaints"] or result["exit"] not in ENDED or result["processes_left"]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
