"""Engines that load, fail and die while they are being started and stopped, in any order: none is left running."""

import asyncio
import random

from qwen_service.engine import Engine
from qwen_service.engines.supervisor import Backoff, Supervisor
from qwen_service.errors import Died, StartFailed
from qwen_service.runtime import LoadProgress
from tests.fakes import ScriptedRuntime
from tests.serving import model_text, says_hi


class SlowToStop(ScriptedRuntime):
    """Takes some turns of the loop to stop; counts when it has."""

    turns = 0

    async def stop(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        self.stopped += 1

    def die(self, failure: Died) -> None:
        if not self._failure.done():
            self.fail_with(failure)


class Machine:
    """Engines that take some turns of the loop to load, and sometimes do not."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.made: list[SlowToStop] = []
        self.most_at_once = 0

    async def bring_up(self, _progress: LoadProgress) -> Engine:
        await self.some_turns()
        if self.rng.random() < 0.3:
            raise StartFailed("not this time")
        runtime = SlowToStop(says_hi)
        runtime.turns = self.rng.randrange(10)
        self.made.append(runtime)
        self.most_at_once = max(self.most_at_once, sum(not runtime.stopped for runtime in self.made))
        return Engine(runtime, runtime.limits, model_text())

    async def some_turns(self) -> None:
        for _ in range(self.rng.randrange(4)):
            await asyncio.sleep(0)


def trouble(supervisor: Supervisor, rng: random.Random) -> None:
    engine, failure = supervisor.engine, Died("killed")
    if engine is None:
        return
    if rng.random() < 0.5:
        supervisor.report(engine, failure)
    if rng.random() < 0.5:
        assert isinstance(engine.runtime, SlowToStop)
        engine.runtime.die(failure)


async def play(seed: int) -> Machine:
    rng = random.Random(seed)
    machine = Machine(rng)
    supervisor = Supervisor("m", machine.bring_up, on_change=lambda: None, backoff=Backoff(0, 0))
    supervisor.start()
    for _ in range(rng.randrange(20)):
        await machine.some_turns()
        trouble(supervisor, rng)
    stops: list[asyncio.Task[None]] = []
    for _ in range(rng.randrange(4)):
        stops.append(asyncio.create_task(supervisor.stop()))
        await machine.some_turns()
        rng.choice(stops).cancel()
        trouble(supervisor, rng)
    async with asyncio.timeout(20):
        await supervisor.stop()
        assert all(runtime.stopped for runtime in machine.made)
        await asyncio.gather(*stops, return_exceptions=True)
    assert (supervisor.phase, supervisor.engine) == ("stopped", None)
    return machine


async def test_every_engine_is_stopped_once_and_two_never_run_at_once() -> None:
    for seed in range(100):
        machine = await play(seed)
        assert {runtime.stopped for runtime in machine.made} <= {1}
        assert machine.most_at_once <= 1
