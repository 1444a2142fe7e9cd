"""Clients that come, leave and end in any order, within one turn of the loop or over several: nothing is lost."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from qwen_service.chat import ChatRequest
from qwen_service.engines.served import ServedModel
from qwen_service.engines.waiting_room import WaitingRoom
from qwen_service.errors import QueueFull
from qwen_service.pipeline.scheduler import Scheduler
from qwen_service.runtime import Limits, Prompt
from tests.fakes import ScriptedRuntime
from tests.serving import says_hi, served_model

SLOTS, PLACES = 2, 3


@dataclass
class Crowd:
    scheduler: Scheduler
    model: ServedModel
    generating: int = 0
    most_generating: int = 0
    ends: list[asyncio.Event] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def come(self, client: int) -> None:
        end = asyncio.Event()
        self.ends.append(end)
        self.tasks.append(asyncio.create_task(self._generate(str(client % 3), end)))

    def leave(self, number: int) -> None:
        if self.tasks:
            self.tasks[-1 - number % len(self.tasks[-8:])].cancel()

    def end(self, number: int) -> None:
        if self.ends:
            self.ends[-1 - number % len(self.ends[-8:])].set()

    async def wait(self, turns: int) -> None:
        for _ in range(turns % 4):
            await asyncio.sleep(0)
        assert self.scheduler.running <= SLOTS

    async def _generate(self, client: str, end: asyncio.Event) -> None:
        async with self.scheduler.turn(self.model, Prompt((1,), ChatRequest("r", client=client))):
            self.generating += 1
            self.most_generating = max(self.most_generating, self.generating)
            try:
                await end.wait()
            finally:
                self.generating -= 1


def steps(rng: random.Random) -> Iterator[tuple[str, int]]:
    for _ in range(200):
        yield rng.choice(("come", "come", "leave", "end", "wait")), rng.randrange(1000)


async def play(seed: int) -> set[type[BaseException] | None]:
    """What became of the clients."""
    scheduler = Scheduler(WaitingRoom(PLACES, 30))
    runtime = ScriptedRuntime(says_hi, limits=Limits(256, 255, SLOTS))
    async with served_model(runtime, on_change=scheduler.dispatch) as model:
        crowd = Crowd(scheduler, model)
        for action, number in steps(random.Random(seed)):
            if action == "wait":
                await crowd.wait(number)
            else:
                getattr(crowd, action)(number)
        for end in crowd.ends:
            end.set()
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*crowd.tasks, return_exceptions=True)
    assert crowd.most_generating <= SLOTS
    assert (scheduler.running, scheduler.waiting) == (0, 0)
    return {None if outcome is None else type(outcome) for outcome in outcomes}


async def test_no_slot_and_no_place_is_lost_and_nobody_gets_an_error_of_ours() -> None:
    for seed in range(50):
        assert await play(seed) == {None, asyncio.CancelledError, QueueFull}
