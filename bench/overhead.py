"""What the service adds to the engine: python -m bench.overhead --model-path FILE.gguf [--rounds N] [--json FILE]

Starts the service, then sends the same questions by turns to its API and to its engine's own HTTP route, on the
engine's socket, in one run: the machine's noise meets both. Greedy, with the end token forbidden, so that both
generate the same tokens. The ratios are what counts; the absolute numbers are those of the machine.
"""

import argparse
import asyncio
import json
import re
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import uvloop

from bench.raw_client import Answer, Target, ask, send
from bench.service_under_test import ServiceUnderTest, running

QUESTIONS = [f"Tell me {n} things about the number {n}." for n in range(3, 11)]
REPLY_TOKENS = 64
REQUESTS = 16  # of all clients together, in each sample: about 1000 tokens


@dataclass(frozen=True)
class Figure:
    name: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None

    def line(self) -> str:
        verdict = {None: "", True: "ok", False: "MISSED"}[self.met]
        return f"{self.name:<58} {self.value:>9.3f} {self.unit:<10} {self.target:<10} {verdict}"


def at_most(name: str, value: float, unit: str, limit: float) -> Figure:
    return Figure(name, value, unit, f"<= {limit:g}", value <= limit)


def at_least(name: str, value: float, unit: str, limit: float) -> Figure:
    return Figure(name, value, unit, f">= {limit:g}", value >= limit)


async def load(target: Target, clients: int, requests: int, max_tokens: int) -> tuple[float, int]:
    """Seconds and tokens of `clients` that each send `requests`, one after the other."""

    async def client(question: str) -> int:
        return sum([(await ask(target, question, max_tokens)).tokens for _ in range(requests)])

    started = time.perf_counter()
    tokens = await asyncio.gather(*(client(QUESTIONS[n]) for n in range(clients)))
    return time.perf_counter() - started, sum(tokens)


def by_turns(service: ServiceUnderTest, round_: int) -> tuple[Target, Target]:
    return (service.engine, service.api) if round_ % 2 == 0 else (service.api, service.engine)


async def throughput(service: ServiceUnderTest, clients: int, rounds: int) -> list[Figure]:
    rates: dict[str, list[float]] = {"engine": [], "service": []}
    cpu_per_token = []
    for round_ in range(rounds):
        for target in by_turns(service, round_):
            cpu = service.cpu_seconds()
            seconds, tokens = await load(target, clients, REQUESTS // clients, REPLY_TOKENS)
            rates[target.name].append(tokens / seconds)
            if target is service.api:
                cpu_per_token.append((service.cpu_seconds() - cpu) / tokens * 1000)
    engine, ours = statistics.median(rates["engine"]), statistics.median(rates["service"])
    ratio = statistics.median(b / a for a, b in zip(rates["engine"], rates["service"], strict=True))
    return [
        Figure(f"tokens/s, {clients} clients, engine's own route", engine, "tokens/s"),
        Figure(f"tokens/s, {clients} clients, through the service", ours, "tokens/s"),
        at_least(f"ratio of tokens/s, {clients} clients", ratio, "", 0.97),
        at_most(
            f"CPU of the service per streamed token, {clients} clients", statistics.median(cpu_per_token), "ms", 0.25
        ),
    ]


async def first_token(service: ServiceUnderTest, pairs: int) -> list[Figure]:
    """The prompt is in the KV cache, so that what is added is not lost in the noise of a long prefill."""
    added, own = [], []
    for pair in range(pairs):
        times = {target.name: (await ask(target, QUESTIONS[0], 2)).first_text for target in by_turns(service, pair)}
        own.append(times["engine"] * 1000)
        added.append((times["service"] - times["engine"]) * 1000)
    return [
        Figure("time to first token, engine's own route, median", statistics.median(own), "ms"),
        at_most("added time to first token, median", statistics.median(added), "ms", 3),
        at_most("added time to first token, p99", statistics.quantiles(added, n=100)[98], "ms", 15),
    ]


async def request_rate(service: ServiceUnderTest, requests: int, clients: int = 4, rounds: int = 5) -> list[Figure]:
    rates: dict[str, list[float]] = {"engine": [], "service": []}
    each = requests // rounds // clients
    for round_ in range(rounds):
        for target in by_turns(service, round_):
            seconds, _ = await load(target, clients, each, 1)
            rates[target.name].append(each * clients / seconds)
    ratio = statistics.median(b / a for a, b in zip(rates["engine"], rates["service"], strict=True))
    return [
        Figure("requests/s at one token, engine's own route", statistics.median(rates["engine"]), "1/s"),
        Figure("requests/s at one token, through the service", statistics.median(rates["service"]), "1/s"),
        at_least("ratio of requests/s at one token", ratio, "", 0.9),
    ]


async def conversation(service: ServiceUnderTest, turns: int) -> list[Figure]:
    """How much of each later turn's prompt had to be computed: without reuse, all of it."""
    messages: list[dict[str, str]] = []
    new, cached = [], []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn}: what is {turn} plus {turn}?"})
        options = {"max_tokens": 24, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        answer = await send(service.api, orjson.dumps({"messages": messages, **options}))
        messages.append({"role": "assistant", "content": text_of(answer)})
        new.append(number(answer, "prompt_tokens") - number(answer, "cached_tokens"))
        cached.append(number(answer, "cached_tokens"))
    return [
        at_least(f"cached prompt tokens, fewest in turns 2 to {turns}", min(cached[1:]), "tokens", 1),
        Figure(f"prompt tokens computed, most in turns 2 to {turns}", max(new[1:]), "tokens"),
        Figure(f"prompt tokens of turn {turns}", new[-1] + cached[-1], "tokens"),
    ]


def text_of(answer: Answer) -> str:
    deltas = re.findall(rb'"delta":(\{.*?\})', answer.content)
    return "".join(orjson.loads(delta).get("content") or "" for delta in deltas)


def number(answer: Answer, name: str) -> int:
    return int(re.findall(rb'"%b":(\d+)' % name.encode(), answer.content)[-1])


async def measure(model_path: Path, rounds: int, requests: int) -> AsyncGenerator[Figure, None]:
    with tempfile.TemporaryDirectory(prefix="qwen-bench-") as folder:
        async with running(model_path, Path(folder), QUESTIONS) as service:
            yield at_most("from exec to an answer of /health", service.first_health, "s", 1.5)
            yield at_most("from exec to ready", service.ready, "s", 4)
            for target in (service.engine, service.api):
                await load(target, len(QUESTIONS), 1, 8)  # warm caches on both sides
            yield at_most("RSS of the service after load", service.rss_mb(), "MB", 90)
            for figure in await first_token(service, pairs=rounds * 25):
                yield figure
            for clients in (1, 4, 8):
                for figure in await throughput(service, clients, rounds):
                    yield figure
            for figure in await request_rate(service, requests):
                yield figure
            yield at_most(f"RSS of the service after {requests} requests", service.rss_mb(), "MB", 90)
            for figure in await conversation(service, 10):
                yield figure


async def report(model_path: Path, rounds: int, requests: int) -> list[Figure]:
    figures = []
    async with aclosing(measure(model_path, rounds, requests)) as measured:
        async for figure in measured:
            print(figure.line(), flush=True)
            figures.append(figure)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=4, help="pairs of runs per figure (default 4, about 4 minutes)")
    parser.add_argument("--requests", type=int, default=1000, help="requests of one token (default 1000)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    figures = uvloop.run(report(options.model_path, options.rounds, options.requests))
    if options.json:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
