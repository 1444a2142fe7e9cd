"""One chaos run: clients all the time, faults at random, invariants checked all the time, figures at the end."""

import asyncio
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.chaos.clients import HEAD, Clients, Violation
from tests.chaos.faults import Nuisances, engine_faults, strike
from tests.chaos.process import Sample, Service, is_alive

STALL_TIMEOUT = 3.0  # seconds, as target.py sets it
TRUTH = 2.0  # seconds until /health must show what has happened
STOPPING = 13.0  # seconds that runtimes give a program to stop, before they give it up
# Seconds beyond STALL_TIMEOUT that the longest prompt here, about 900 ids, is given.
LONGEST_PREFILL = {"axllm": 45.0, "ax_repl": 90.0}
LONGEST_BACKOFF = 30.0  # seconds, of the supervisor
LOAD = 20.0  # seconds for an engine to load on a busy machine
CLIENTS = 4
WARMED = ("ax_api", "axllm")  # targets whose runtime prefills while nobody waits, in a storm
CALM = 2.0  # seconds without a new request after each recovery: only then something can be prefilled


@dataclass
class Figures:
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    worst_truth: float = 0.0  # seconds from a fault to /health showing it
    worst_health: float = 0.0  # seconds for an answer of /health
    recoveries: list[float] = field(default_factory=list)
    warmings: int = 0
    before: Sample | None = None
    after: Sample | None = None

    def __str__(self) -> str:
        assert self.before is not None
        assert self.after is not None
        seconds = " ".join(f"{recovery:.1f}" for recovery in self.recoveries)
        lines = [
            f"requests    {sum(self.outcomes.values())}",
            *(f"            {count:6} {outcome}" for outcome, count in sorted(self.outcomes.items())),
            f"faults      {', '.join(f'{count} {fault}' for fault, count in sorted(self.faults.items()))}",
            f"recoveries  after {seconds} s",
            f"prefilled   {self.warmings} times while nobody waited",
            f"health      told the truth within {self.worst_truth:.2f} s, answered within {self.worst_health:.2f} s",
            f"memory      {self.before.rss / 1e6:.1f} -> {self.after.rss / 1e6:.1f} MB",
            f"files       {self.before.files} -> {self.after.files}",
            f"threads     {self.before.threads} -> {self.after.threads}",
        ]
        return "\n".join(lines)


class Storm:
    def __init__(self, service: Service, http: httpx.AsyncClient, seed: int) -> None:
        self._service, self._http = service, http
        self._rng = random.Random(seed)
        head = HEAD * (8 if service.target == "axllm" else 2)  # axllm computes a prompt of up to 128 ids afresh
        self._clients = Clients(http, self._rng, echo=service.target != "llamacpp", head=head)
        self._nuisances = Nuisances(service, http, self._clients, self._rng)
        self._over = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self.figures = Figures()

    async def run(self, seconds: float) -> Figures:
        """Raises Violation, in an ExceptionGroup."""
        await self._well(LOAD)
        await self._clients.learn()
        self.figures.worst_health = 0.0  # reading a tokenizer at the first start holds everything up for a second
        await asyncio.gather(*(self._clients.any() for _ in range(8)))  # caches fill, lazy imports happen
        self.figures.before = self._service.sample()
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._use())
            group.create_task(self._disturb())
            group.create_task(self._break(seconds))
        await self._quiet()
        await self._warmed()
        return self.figures

    async def _use(self) -> None:
        while not self._over.is_set():
            await self._open.wait()
            self.figures.outcomes[await self._clients.any()] += 1

    async def _disturb(self) -> None:
        while not self._over.is_set():
            nuisance = self._rng.choice(self._nuisances.kinds)
            self.figures.faults[nuisance.__name__] += 1
            await nuisance()
            await asyncio.sleep(self._rng.random())

    async def _break(self, seconds: float) -> None:
        """One engine fault after the other, each seen to be told and healed."""
        end = time.monotonic() + seconds
        faults = engine_faults(self._service.target)
        for fault in self._rng.sample(faults, len(faults)):
            while not await self._break_once(fault):
                await self._well(LONGEST_BACKOFF + LOAD)
        while time.monotonic() < end:
            await self._break_once(self._rng.choice(faults))
        self._over.set()

    async def _break_once(self, fault: str) -> bool:
        """False when there is no engine to strike: a slow machine's may have stalled by itself, and is being replaced."""
        await asyncio.sleep(self._rng.random() * 3)
        restarts = await self._restarts()
        if not strike(self._service, fault, self._rng):
            return False
        self.figures.faults[fault] += 1
        struck = time.monotonic()
        patience = TRUTH
        if fault == "hang":
            patience += STALL_TIMEOUT + STOPPING + LONGEST_PREFILL.get(self._service.target, 0.0)
        await self._told(restarts, patience)
        if fault != "hang":
            self.figures.worst_truth = max(self.figures.worst_truth, time.monotonic() - struck)
        await self._well(LONGEST_BACKOFF + LOAD)
        self.figures.recoveries.append(time.monotonic() - struck)
        self._open.clear()
        await asyncio.sleep(CALM)
        self._open.set()
        return True

    async def _told(self, restarts: int, patience: float) -> None:
        deadline = time.monotonic() + patience
        while await self._is_well() and await self._restarts() == restarts:
            if time.monotonic() > deadline:
                log = "\n".join(line for line in self._service.log.splitlines() if "GET /health" not in line)
                raise Violation(f"/health says ok {patience:g} s after the engine was struck:\n{log[-6000:]}")
            await asyncio.sleep(0.05)

    async def _well(self, within: float) -> None:
        deadline = time.monotonic() + within
        while not await self._is_well():
            if time.monotonic() > deadline:
                raise Violation(f"not well within {within:g} s: {(await self._http.get('/health')).text}")
            await asyncio.sleep(0.1)

    async def _is_well(self) -> bool:
        if not self._service.alive:
            raise Violation(f"the service has ended:\n{self._service.log[-4000:]}")
        asked = time.monotonic()
        response = await self._http.get("/health")
        self.figures.worst_health = max(self.figures.worst_health, time.monotonic() - asked)
        return bool(response.json()["status"] == "ok")

    async def _is_idle(self) -> bool:
        queue = (await self._http.get("/health")).json()["details"]["queue"]
        return not queue["running"] and not queue["waiting"]

    async def _restarts(self) -> int:
        return int((await self._http.get("/health")).json()["details"]["model"]["restarts"])

    async def _quiet(self) -> None:
        """Nothing runs, nothing waits, nothing is left; one more request is answered."""
        deadline = time.monotonic() + 60
        while not await self._is_idle():
            if time.monotonic() > deadline:
                raise Violation("requests are left 60 s after their clients have gone")
            await asyncio.sleep(0.1)
        outcome = await self._clients.whole()
        if not outcome.startswith("200"):
            raise Violation(f"after the storm a request was answered {outcome}:\n{self._service.log[-3000:]}")
        await asyncio.sleep(4)  # the limits of target.py close what half-open connections are left
        self.figures.after = self._service.sample()

    async def _warmed(self) -> None:
        """Where the runtime can, something is prefilled once nobody waits."""
        deadline = time.monotonic() + 60
        while not (count := await self._warmings()) and self._service.target in WARMED:
            if time.monotonic() > deadline:
                raise Violation("nothing is prefilled while nobody waits")
            await self._clients.talk()
            await asyncio.sleep(CALM)
        self.figures.warmings = count

    async def _warmings(self) -> int:
        counts = re.findall(r"^qwen_warmings_total\{[^}]*\} (\d+)", (await self._http.get("/metrics")).text, re.M)
        return sum(map(int, counts))


async def storm(target: str, folder: Path, seconds: float, seed: int) -> Figures:
    service = Service(target, folder)
    try:
        async with httpx.AsyncClient(
            base_url=await service.url(),
            timeout=120,
            limits=httpx.Limits(max_connections=200, max_keepalive_connections=5),
        ) as http:
            figures = await Storm(service, http, seed).run(seconds)
        children = service.children()
        code = await service.stop()
    except BaseException:
        service.process.kill()
        service.process.wait()
        raise
    left = [pid for pid in children if is_alive(pid)]
    if code not in (0, -15) or left:
        raise Violation(f"the service ended with {code} and left {left} behind")
    return figures
