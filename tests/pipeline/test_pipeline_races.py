"""Requests, switches, restarts, deaths and clients that leave, at any moment: each ends, and nothing stays behind."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from qwen_service.chat import ChatRequest, Finished, Message, Sampling
from qwen_service.engine import BringUp, Engine
from qwen_service.errors import Died, ServiceError
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.runtime import Limits, LoadProgress, Piece, Prefill, Prompt
from qwen_service.settings import Settings
from tests.fakes import ScriptedRuntime
from tests.serving import Pipeline, model_text, pipeline, settings_with_models

NAMES = ("a", "b")


async def turns(rng: random.Random) -> None:
    for _ in range(rng.randrange(5)):
        await asyncio.sleep(0)


class Slow(ScriptedRuntime):
    """Takes some turns of the loop for everything; sometimes dies in the middle of a reply."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(self._talk)
        self.rng = rng
        self.generating = 0

    async def stop(self) -> None:
        await turns(self.rng)
        await super().stop()

    async def _talk(self, prompt: Prompt, _sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        self.generating += 1
        assert self.generating == 1, "one slot"
        try:
            for _ in range(self.rng.randrange(5)):
                await turns(self.rng)
                yield Piece("x", 1, (120,))
            if self.rng.random() < 0.05:
                raise Died("killed")
            yield Piece("", 0, (), finish_reason="stop")
        finally:
            try:
                await turns(self.rng)
            finally:
                self.generating -= 1


@dataclass
class Workshop:
    rng: random.Random
    made: list[Slow] = field(default_factory=list)

    def loaders(self, model: InstalledModel, _settings: Settings, _machine: Machine) -> dict[str, BringUp]:
        async def bring_up(_progress: LoadProgress) -> Engine:
            await turns(self.rng)
            self.made.append(Slow(self.rng))
            return Engine(self.made[-1], Limits(256, 255), model_text())

        return {model.name: bring_up}


async def ask(service: Pipeline, rng: random.Random) -> str:
    request = ChatRequest("r", model=rng.choice((None, *NAMES)), messages=(Message("user", "Hello"),))
    enough = rng.randrange(8)
    async with aclosing(service.chat.stream(request)) as events:
        async for event in events:
            enough -= 1
            if isinstance(event, Finished):
                return event.reason
            if not enough:
                return "left"
    raise AssertionError("a reply without an end")


async def play(seed: int, folder: Path) -> list[str | BaseException]:
    rng = random.Random(seed)
    workshop = Workshop(rng)
    settings = settings_with_models(folder, *NAMES, autoload="on", queue_size=5)
    async with pipeline(settings, workshop.loaders) as service:
        tasks: list[asyncio.Task[str]] = []
        for _ in range(40):
            await turns(rng)
            tasks.append(asyncio.create_task(ask(service, rng)))
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert (service.scheduler.running, service.scheduler.waiting) == (0, 0)
        assert service.models.current is not None
        assert service.models.current.users == 0
        assert service.models.switching_to == ""
    assert all(runtime.stopped for runtime in workshop.made)
    assert not any(runtime.generating for runtime in workshop.made)
    return outcomes


async def test_whatever_happens_every_request_ends_and_nothing_stays_behind(tmp_path: Path) -> None:
    for seed in range(20):
        for outcome in await play(seed, tmp_path):
            assert isinstance(outcome, str | ServiceError | asyncio.CancelledError), repr(outcome)
