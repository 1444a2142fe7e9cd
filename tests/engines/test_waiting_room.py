"""One bound and one patience for load, switch and turn together."""

import asyncio
import time

import pytest

from qwen_service.chat import ChatRequest
from qwen_service.engines.waiting_room import Patience, WaitingRoom
from qwen_service.errors import QueueFull, QueueTimeout
from qwen_service.pipeline.scheduler import Scheduler
from qwen_service.runtime import Prompt
from tests.fakes import ScriptedRuntime
from tests.serving import says_hi, served_model

PROMPT = Prompt((1,), ChatRequest("r"))


def test_patience_ends_and_is_never_negative() -> None:
    assert 29 < Patience(30).left <= 30
    assert Patience(0).left == 0


def test_who_waits_for_a_model_takes_a_place_of_the_line() -> None:
    room = WaitingRoom(2, 30)
    with room.wait_for_model():
        assert (room.waiting, room.places_in_line) == (1, 1)
        with (
            room.wait_for_model(),
            pytest.raises(QueueFull, match=r"The line is full \(queue_size: 2\)"),
            room.wait_for_model(),
        ):
            pass
    assert (room.waiting, room.places_in_line) == (0, 2)


async def test_the_line_is_shorter_by_those_who_wait_for_a_model() -> None:
    room = WaitingRoom(1, 30)
    scheduler = Scheduler(room)
    async with served_model(ScriptedRuntime(says_hi), on_change=scheduler.dispatch) as model:
        async with scheduler.turn(model, PROMPT):
            with room.wait_for_model(), pytest.raises(QueueFull):
                async with scheduler.turn(model, PROMPT):
                    pass
            waiting = asyncio.create_task(scheduler.turn(model, PROMPT).__aenter__())
            await asyncio.sleep(0)
            assert room.waiting == 1
            with pytest.raises(QueueFull), room.wait_for_model():
                pass
        turn = await waiting
        assert turn.engine is model.engine


async def test_who_has_waited_for_a_model_waits_that_much_less_for_its_turn() -> None:
    scheduler = Scheduler(WaitingRoom(4, 300))
    served = served_model(ScriptedRuntime(says_hi), on_change=scheduler.dispatch)
    async with served as model, scheduler.turn(model, PROMPT):
        spent = Patience(300)
        spent._ends = time.monotonic() + 0.01  # the rest went while the model was loaded
        with pytest.raises(QueueTimeout, match="300 s"):
            async with asyncio.timeout(60), scheduler.turn(model, PROMPT, spent):
                pass
