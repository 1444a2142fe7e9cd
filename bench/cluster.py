"""What the cluster costs and gains: nodes of Ray on this machine, each with a simulated card.

    python -m bench.cluster TOKENIZER_FOLDER [--cards 1 2 4] [--token-ms 100] [--step-ms 300] [--no-talks] [--json]

Measured against the same model served by `qwen-service serve` on one card: tokens per second with a client per card, the
time to the first token, the CPU of each process per token. Then twelve talks on all cards (bench/cluster_talks.py), by our
router and by two others.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.cluster_talks import APART, ROUTERS, Outcome, hold_talks
from bench.soak_service import ROOT, listening_url
from tests.cluster.local_cluster import MODEL, LocalCluster, local_cluster

REPLY = 60  # tokens
FIRSTS = 40  # requests for the median of the first token
IDLE = 10.0  # seconds in which idle processes are watched
SPARE_PORT = 6  # behind those of the replicas
PROCESSES = ("ProxyActor", "Ingress", "CardReplica", "ServeController")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Rate:
    cards: int
    tokens_per_second: float
    per_card: float  # of the direct service's rate

    def line(self) -> str:
        return f"{self.cards} cards: {self.tokens_per_second} tokens/s, {self.per_card:.3f} of one card's rate for each"


@dataclass(frozen=True)
class Figures:
    direct_tokens_per_second: float
    rates: list[Rate]
    direct_first_ms: float
    cluster_first_ms: float
    direct_cpu_ms_per_token: float
    cpu_ms_per_token: dict[str, float]  # by process, what it takes when idle left out
    idle_cpu_percent: dict[str, float]
    talks: list[Outcome]


class Client:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._number = 0

    async def ask(self, *, tokens: int = REPLY) -> tuple[float, int]:
        """Seconds to the first token, and how many came. Each prompt is a new one."""
        self._number += 1
        text = f"{self._number}-{time.monotonic_ns()}: tell me of it."
        body = {"messages": [{"role": "user", "content": text}], "stream": True, "max_tokens": tokens}
        body["stream_options"] = {"include_usage": True}
        began, first, count = time.perf_counter(), 0.0, 0
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if '"content":"' in line and '"content":""' not in line:
                    first = first or time.perf_counter() - began
                if '"usage":{' in line:
                    count = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
        if not count:
            raise SystemExit(f"no reply came: {answer.status_code}")
        return first, count

    async def rate(self, clients: int) -> float:
        async def one() -> int:
            return sum([(await self.ask())[1] for _ in range(3)])

        began = time.perf_counter()
        tokens = sum(await asyncio.gather(*(one() for _ in range(clients))))
        return tokens / (time.perf_counter() - began)


async def first_tokens(direct: Client, cluster: Client) -> tuple[float, float]:
    """The medians in ms. Requests go by turns to both, so that the machine's noise meets both."""
    pairs = [((await direct.ask(tokens=3))[0] * 1000, (await cluster.ask(tokens=3))[0] * 1000) for _ in range(FIRSTS)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


async def talks_by_routers(cluster: LocalCluster, http: httpx.AsyncClient, cards: int) -> AsyncIterator[Outcome]:
    for name, router in ROUTERS.items():
        cluster.deploy(replicas=cards, router=router)
        await cluster.until_ready(cards)
        for apart in (0.0, APART):
            outcome = await hold_talks(http, name, cards=cards, apart=apart)
            note(outcome.line())
            yield outcome


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def cpu_by_kind(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {kind: sum(map(cpu_seconds, members)) for kind, members in pids.items()}


async def idle_shares(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """The CPU that idle processes take, by their kind: 1.0 is a whole core."""
    before, began = cpu_by_kind(pids), time.perf_counter()
    await asyncio.sleep(IDLE)
    after, took = cpu_by_kind(pids), time.perf_counter() - began
    return {kind: (after[kind] - before[kind]) / took for kind in pids}


async def cpu_figures(cluster: LocalCluster, client: Client) -> tuple[dict[str, float], dict[str, float]]:
    """CPU in ms per token, beyond the idle one; the idle one, the mean of before and after, in percent of a core."""
    pids = cluster.workers(*PROCESSES)
    earlier = await idle_shares(pids)
    before, began = cpu_by_kind(pids), time.perf_counter()
    tokens = sum([(await client.ask())[1] for _ in range(3)])
    after, took = cpu_by_kind(pids), time.perf_counter() - began
    later = await idle_shares(pids)
    idle = {kind: (earlier[kind] + later[kind]) / 2 for kind in pids}
    busy = {kind: after[kind] - before[kind] - idle[kind] * took for kind in pids}
    per_token = {kind: round(seconds / tokens * 1000, 2) for kind, seconds in busy.items()}
    return per_token, {kind: round(share * 100, 1) for kind, share in idle.items()}


@asynccontextmanager
async def direct_service(cluster: LocalCluster, folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """The same model on one card, served without Ray."""
    service = {**cluster.settings.service, "model": MODEL, "port": 0, "host": "127.0.0.1", "warm": "off"}
    service |= {"state_dir": str(folder / "direct"), "devices": 0, "npu_poll_interval": 0}
    service["runtime_port"] += SPARE_PORT
    flags = [part for key, value in service.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    log = folder / "direct.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "qwen_service", "serve", *flags], cwd=ROOT, stdout=output, stderr=output
        )
    try:
        url = await listening_url(process, log)
        async with httpx.AsyncClient(base_url=url, timeout=300) as http:
            while (await http.get("/health/ready")).status_code != 200 and process.poll() is None:  # noqa: ASYNC110  # it loads
                await asyncio.sleep(0.1)
            yield http, process.pid
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 60)


async def measure(options: argparse.Namespace, folder: Path, cluster: LocalCluster) -> Figures:
    async with (
        direct_service(cluster, folder) as (alone, pid),
        httpx.AsyncClient(base_url=cluster.url, timeout=300) as http,
    ):
        direct, client = Client(alone), Client(http)
        await direct.ask()
        cpu = cpu_seconds(pid)
        direct_rate = await direct.rate(1)
        direct_cpu = (cpu_seconds(pid) - cpu) / (3 * REPLY) * 1000
        rates = []
        for cards in options.cards:
            cluster.deploy(replicas=cards)
            await cluster.until_ready(cards)
            await asyncio.gather(*(client.ask(tokens=3) for _ in range(cards)))
            rate = await client.rate(cards)
            rates.append(Rate(cards, round(rate, 2), round(rate / direct_rate / cards, 4)))
            note(rates[-1].line())
        direct_first, first = await first_tokens(direct, client)
        per_token, idle = await cpu_figures(cluster, client)
        talks = (
            [outcome async for outcome in talks_by_routers(cluster, http, options.cards[-1])] if options.talks else []
        )
    return Figures(
        round(direct_rate, 2),
        rates,
        round(direct_first, 1),
        round(first, 1),
        round(direct_cpu, 2),
        per_token,
        idle,
        talks,
    )


def note(line: str) -> None:
    """Show a figure at once: the whole takes a quarter of an hour."""
    print(line, file=sys.stderr, flush=True)


def show(figures: Figures) -> str:
    lines = [f"one card without Ray: {figures.direct_tokens_per_second} tokens/s", ""]
    lines += [rate.line() for rate in figures.rates]
    added = figures.cluster_first_ms - figures.direct_first_ms
    lines += ["", f"first token: {figures.direct_first_ms} ms, in the cluster {added:+.1f} ms"]
    lines += [f"CPU per token: {figures.direct_cpu_ms_per_token} ms without Ray"]
    for kind, cost in figures.cpu_ms_per_token.items():
        lines.append(f"  {kind}: {cost} ms per token, {figures.idle_cpu_percent[kind]} % of a core when idle")
    lines += ["", *(outcome.line() for outcome in figures.talks)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--cards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--token-ms", type=float, default=100)
    parser.add_argument("--step-ms", type=float, default=300)
    parser.add_argument("--talks", action=argparse.BooleanOptionalAction, default=True, help="ten minutes of them")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    environment = {
        "SIM_TOKEN": str(options.token_ms / 1000),
        "SIM_STEP": str(options.step_ms / 1000),
        "SIM_REPLY": json.dumps([1000 + number for number in range(200)]),
    }
    with tempfile.TemporaryDirectory(prefix="q.", dir="/tmp") as name:
        folder, cards = Path(name), max(options.cards)
        settings: dict[str, Any] = {"queue_size": 64, "queue_timeout": 300}
        with local_cluster(
            folder, options.tokenizer.resolve(), cards=cards, settings=settings, environment=environment
        ) as cluster:
            figures = asyncio.run(measure(options, folder, cluster))
    print(json.dumps(asdict(figures), indent=2) if options.json else show(figures))


if __name__ == "__main__":
    main()
