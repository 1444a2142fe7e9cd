"""Many requests at once to a runtime that is killed, hangs, fails, and is restarted all the time."""

import asyncio
import os
import random
import signal
import threading
from collections import Counter
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from qwen_service.chat import Sampling
from qwen_service.engine import Engine, ModelText
from qwen_service.engines.served import ServedModel
from qwen_service.engines.supervisor import Backoff, Supervisor
from qwen_service.engines.waiting_room import WaitingRoom
from qwen_service.errors import Busy, RuntimeFailure
from qwen_service.pipeline.scheduler import Scheduler
from qwen_service.runtime import LoadProgress, Piece
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import ChatTemplate
from qwen_service.text.tokenizer import LocalTokenizer
from tests.serving import installed
from tests.simulated_repl import Rig, exists, repl_rig

SEED = 8850


class Chaos:
    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.random = random.Random(seed)
        self.pids: set[int] = set()
        self.outcomes: Counter[str] = Counter()
        self.scheduler = Scheduler(WaitingRoom(12, 20))
        backoff = Backoff(first=0.01, longest=0.05)
        supervisor = Supervisor("m", self.bring_up, on_change=self.scheduler.dispatch, backoff=backoff)
        self.model = ServedModel(installed(), (supervisor,))

    async def bring_up(self, progress: LoadProgress) -> Engine:
        """Each life of the program has a fault of its own, or none."""
        after = self.random.randrange(1, 30)
        fault = self.random.choice(["", f"segv:{after}", f"kill:{after}", f"hang:{after}", f"npu:{after + 10}"])
        runtime = self.rig.make(
            options={"stall_timeout": 1.0, "stop_timeout": 2.0},
            SIM_TOKEN_MS="0.3", SIM_GAP_MS=str(self.random.choice([0, 1, 5])), SIM_BOGUS="1", SIM_FAULT=fault,
        )  # fmt: skip
        limits = await runtime.start(progress)
        self.pids.add(self.rig.pid)
        return Engine(runtime, limits, ModelText(self.rig.tokenizer, ChatTemplate("", {}), OutputFormat()))

    async def request(self, number: int) -> None:
        """The simulator echoes: whoever gets another's tokens sees another's number."""
        mine = f"request {number} and"
        text = f"{mine} " + "so on and " * self.random.randrange(12)
        prompt = self.rig.prompt(text)
        limit = self.random.choice([None, 1, 2, 3, 5, 8, 13])
        expected = self.rig.tokenizer.decode_now(prompt.token_ids[:limit])
        said, reason = "", None
        try:
            async with (
                self.scheduler.turn(self.model, prompt) as turn,
                aclosing(turn.engine.runtime.generate(prompt, Sampling(max_tokens=limit))) as items,
            ):
                async for item in items:
                    if isinstance(item, Piece):
                        said, reason = said + item.text, item.finish_reason
                        assert said[: len(mine)] == mine[: len(said)]
            assert (said, reason is not None) == (expected, True)
            self.outcomes["answered"] += 1
        except (Busy, RuntimeFailure) as error:
            self.outcomes[type(error).__name__] += 1
            await asyncio.sleep(self.random.random() * 0.5)

    async def client(self, numbers: list[int]) -> None:
        while numbers:
            task = asyncio.create_task(self.request(numbers.pop()))
            if self.random.random() < 0.2:  # it leaves
                await asyncio.sleep(self.random.random() * 0.2)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                self.outcomes["left"] += 1
            else:
                await task

    async def killer(self) -> None:
        while True:
            await asyncio.sleep(self.random.uniform(0.3, 1.2))
            with suppress(ProcessLookupError, FileNotFoundError, ValueError):
                os.kill(self.rig.pid, signal.SIGKILL)

    async def run(self, requests: int) -> None:
        self.model.start()
        killer = asyncio.create_task(self.killer())
        numbers = list(range(requests))
        try:
            await asyncio.gather(*(self.client(numbers) for _ in range(16)))
        finally:
            killer.cancel()
            await self.model.stop()


def open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(kind.partition(":")[0] for kind in found if not kind.startswith("/proc"))


@pytest.mark.parametrize("requests", [100, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
async def test_every_request_ends_in_its_own_answer_or_an_error_and_nothing_is_left(
    requests: int, tmp_path: Path, qwen_tokenizer_folder: Path
) -> None:
    tokenizer = LocalTokenizer(qwen_tokenizer_folder)
    async with repl_rig(tmp_path, tokenizer) as rig:  # what the loop opens once is open from now on
        await rig.start()
    files, threads = open_files(), threading.active_count()
    async with repl_rig(tmp_path, tokenizer) as rig:
        chaos = Chaos(rig, SEED)
        await chaos.run(requests)
        assert rig.server.open_prompts == 0
    print(dict(chaos.outcomes), len(chaos.pids), "lives")
    assert chaos.outcomes["answered"] > requests // 10  # a busy machine refuses more
    assert chaos.outcomes.total() >= requests
    assert len(chaos.pids) > requests // 50
    assert not [pid for pid in chaos.pids if exists(pid)]
    left = Counter(open_files()) - Counter(files)
    assert not left, left
    assert threading.active_count() <= threads + 8  # the loop's thread pool may have grown
