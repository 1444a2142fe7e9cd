import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from qwen_service.chat import ChatRequest
from qwen_service.engine import Engine
from qwen_service.engines.served import ServedModel
from qwen_service.engines.waiting_room import WaitingRoom
from qwen_service.errors import Died, Loading, QueueFull, QueueTimeout, StartFailed, Unavailable
from qwen_service.pipeline.scheduler import Scheduler, Turn
from qwen_service.runtime import Limits, Prompt
from tests.fakes import ScriptedRuntime
from tests.serving import says_hi, served_model

PROMPT = Prompt((1,), ChatRequest("r"))


class Line:
    """A scheduler, one model of one slot, and clients that are known by their number."""

    def __init__(self, scheduler: Scheduler, model: ServedModel) -> None:
        self.scheduler = scheduler
        self.model = model
        self.granted: list[int] = []
        self.leave: dict[int, asyncio.Event] = {}

    async def client(self, number: int, client: str = "") -> None:
        self.leave[number] = asyncio.Event()
        async with self.scheduler.turn(self.model, Prompt((1,), ChatRequest("r", client=client))):
            self.granted.append(number)
            await self.leave[number].wait()

    async def arrives(self, number: int, client: str = "") -> asyncio.Task[None]:
        """Until it has its slot or waits for one."""
        task = asyncio.create_task(self.client(number, client))
        await asyncio.sleep(0)
        return task


@asynccontextmanager
async def make_line(*, slots: int = 1, queue_size: int = 4, queue_timeout: float = 30) -> AsyncGenerator[Line, None]:
    scheduler = Scheduler(WaitingRoom(queue_size, queue_timeout))
    runtime = ScriptedRuntime(says_hi, limits=Limits(256, 255, slots))
    async with served_model(runtime, on_change=scheduler.dispatch) as model:
        yield Line(scheduler, model)


@pytest.fixture
async def line() -> AsyncGenerator[Line, None]:
    async with make_line() as made:
        yield made


async def test_turns_are_given_in_the_order_of_arrival(line: Line) -> None:
    tasks = [await line.arrives(number) for number in range(4)]
    for number, task in enumerate(tasks):
        assert line.granted == list(range(number + 1))
        line.leave[number].set()
        await task
        await asyncio.sleep(0)
    assert (line.scheduler.running, line.scheduler.waiting) == (0, 0)


async def test_as_many_run_at_once_as_the_engine_has_slots() -> None:
    async with make_line(slots=3) as line:
        tasks = [await line.arrives(number) for number in range(5)]
        assert line.granted == [0, 1, 2]
        assert (line.scheduler.running, line.scheduler.waiting) == (3, 2)
        for number in (1, 0, 2, 3, 4):
            line.leave[number].set()
            await tasks[number]


async def test_a_full_line_refuses_the_next_one_and_says_when_to_come_back() -> None:
    async with make_line(queue_size=1) as line:
        tasks = [await line.arrives(number) for number in range(2)]
        with pytest.raises(QueueFull) as caught:
            await line.client(2)
        assert 1 <= caught.value.retry_after <= 60
        assert line.scheduler.waiting == 1
        for number, task in enumerate(tasks):
            line.leave[number].set()
            await task


async def test_without_a_line_only_those_are_served_who_need_not_wait() -> None:
    async with make_line(queue_size=0) as line:
        task = await line.arrives(0)
        with pytest.raises(QueueFull):
            await line.client(1)
        line.leave[0].set()
        await task


async def test_who_waits_too_long_is_sent_away() -> None:
    async with make_line(queue_timeout=0.05) as line:
        task = await line.arrives(0)
        with pytest.raises(QueueTimeout, match=r"0\.05 s"):
            await line.client(1)
        assert line.scheduler.waiting == 0
        line.leave[0].set()
        await task


async def test_who_leaves_the_line_is_not_waited_for(line: Line) -> None:
    first, second, third = [await line.arrives(number) for number in range(3)]
    second.cancel()
    await asyncio.wait([second])
    assert line.scheduler.waiting == 1
    line.leave[0].set()
    await first
    await asyncio.sleep(0)
    assert line.granted == [0, 2]
    line.leave[2].set()
    await third


async def test_who_leaves_in_the_moment_of_the_grant_does_not_take_the_slot_along(line: Line) -> None:
    first, second, third = [await line.arrives(number) for number in range(3)]
    line.leave[0].set()
    await asyncio.sleep(0)
    assert (line.granted, line.scheduler.waiting) == ([0], 1)  # the second has the grant, and has not run yet
    second.cancel()
    await asyncio.wait([second])
    await first
    assert line.granted == [0, 2]
    line.leave[2].set()
    await third
    assert line.scheduler.running == 0


async def test_who_leaves_while_generating_frees_the_slot(line: Line) -> None:
    first, second = [await line.arrives(number) for number in range(2)]
    first.cancel()
    await asyncio.wait([first])
    await asyncio.sleep(0)
    assert line.granted == [0, 1]
    line.leave[1].set()
    await second


async def fail(scheduler: Scheduler, model: ServedModel, error: Exception) -> None:
    async with scheduler.turn(model, PROMPT):
        raise error


async def test_a_failure_during_a_turn_is_reported_and_the_line_goes_on_with_the_next_engine() -> None:
    scheduler = Scheduler(WaitingRoom(4, 30))
    runtime = ScriptedRuntime(says_hi)
    async with served_model(runtime, on_change=scheduler.dispatch) as model:
        engine = model.engine
        with pytest.raises(Died):
            await fail(scheduler, model, Died("killed"))
        async with scheduler.turn(model, PROMPT) as turn:
            assert turn.engine is not engine
            assert runtime.stopped == 1
    assert scheduler.running == 0


async def test_an_error_that_is_not_the_engines_does_not_cost_it_its_life() -> None:
    async with make_line() as line:
        engine = line.model.engine
        with pytest.raises(StartFailed):
            await fail(line.scheduler, line.model, StartFailed("not of a generation"))
        await asyncio.sleep(0)
        assert line.model.engine is engine


async def test_who_waits_for_a_model_that_gives_up_is_told_why(line: Line) -> None:
    first = await line.arrives(0)
    waiting = await line.arrives(1)
    (supervisor,) = line.model.supervisors
    await supervisor.stop()
    with pytest.raises(Loading, match="not running"):
        await waiting
    line.leave[0].set()
    await first
    assert line.scheduler.running == 0


async def test_who_comes_when_the_model_has_given_up_does_not_wait(line: Line) -> None:
    (supervisor,) = line.model.supervisors
    await supervisor.stop()
    supervisor.phase, supervisor.last_error = "failed", "there is no card"
    with pytest.raises(Unavailable, match="there is no card"):
        await line.client(0)


async def test_several_devices_share_one_line_and_the_idlest_is_taken() -> None:
    scheduler = Scheduler(WaitingRoom(4, 30))
    runtimes = [ScriptedRuntime(says_hi, limits=Limits(256, 255, slots=2)) for _ in range(2)]
    async with served_model(*runtimes, on_change=scheduler.dispatch) as model, AsyncExitStack() as held:
        turns: list[Turn] = [await held.enter_async_context(scheduler.turn(model, PROMPT)) for _ in range(4)]
        used = [turn.engine.runtime for turn in turns]
        assert {id(runtime) for runtime in used[:2]} == {id(runtime) for runtime in runtimes}
        assert all(used.count(runtime) == 2 for runtime in runtimes)
        assert scheduler.running == 4


class Holding(ScriptedRuntime):
    """Its KV cache holds the whole prompt."""

    def reusable_tokens(self, prompt: Prompt) -> int:
        return len(prompt.token_ids)


async def test_a_device_that_holds_the_conversation_is_preferred_to_an_idler_one() -> None:
    scheduler = Scheduler(WaitingRoom(4, 30))
    limits = Limits(256, 255, slots=2)
    empty, holding = ScriptedRuntime(says_hi, limits=limits), Holding(says_hi, limits=limits)
    async with (
        served_model(empty, holding, on_change=scheduler.dispatch) as model,
        scheduler.turn(model, PROMPT) as first,
        scheduler.turn(model, PROMPT) as second,
        scheduler.turn(model, PROMPT) as third,
    ):
        assert [turn.engine.runtime for turn in (first, second, third)] == [holding, holding, empty]


async def test_the_time_in_the_line_is_told(line: Line) -> None:
    first = await line.arrives(0)
    asyncio.get_running_loop().call_later(0.05, line.leave[0].set)
    async with line.scheduler.turn(line.model, PROMPT) as turn:
        assert turn.waited >= 0.04
    await first


async def test_a_model_that_is_held_back_gets_no_new_work_and_goes_on_when_released() -> None:
    reasons = ["Card 0 is hot"]
    scheduler = Scheduler(WaitingRoom(4, 30), paused_reason=lambda _: reasons[0])
    async with served_model(ScriptedRuntime(says_hi), on_change=scheduler.dispatch) as model:
        line = Line(scheduler, model)
        waiting = await line.arrives(0)
        scheduler.dispatch()
        await asyncio.sleep(0)
        assert (line.granted, scheduler.waiting) == ([], 1)
        reasons[0] = ""
        scheduler.dispatch()
        await asyncio.sleep(0)
        assert line.granted == [0]
        line.leave[0].set()
        await waiting


async def test_who_waits_too_long_for_a_hot_card_is_told_why() -> None:
    scheduler = Scheduler(WaitingRoom(4, 0.05), paused_reason=lambda _: "Card 0 is hot: 90 C")
    async with served_model(ScriptedRuntime(says_hi), on_change=scheduler.dispatch) as model:
        with pytest.raises(QueueTimeout, match="Card 0 is hot: 90 C"):
            async with scheduler.turn(model, PROMPT):
                pytest.fail("it got a turn")


async def test_only_the_engine_of_the_hot_card_is_held_back() -> None:
    hot, cool = Holding(says_hi), ScriptedRuntime(says_hi)  # without the heat, the first would be preferred

    def hold(engine: Engine) -> str:
        return "Card 0 is hot: 90 C" if engine.runtime is hot else ""

    scheduler = Scheduler(WaitingRoom(4, 0.05), paused_reason=hold)
    async with served_model(hot, cool, on_change=scheduler.dispatch) as model, scheduler.turn(model, PROMPT) as turn:
        assert turn.engine.runtime is cool
        with pytest.raises(QueueTimeout, match=r"\(queue_timeout\): Card 0 is hot: 90 C$"):
            async with scheduler.turn(model, PROMPT):
                pytest.fail("it got a turn on the hot card")


async def test_who_has_just_left_a_full_line_is_not_the_one_to_be_refused() -> None:
    async with make_line(queue_size=2) as line:
        first = await line.arrives(0)
        greedy = [await line.arrives(number, client="greedy") for number in (1, 2)]
        other = asyncio.create_task(line.client(3, client="other"))
        greedy[1].cancel()  # the other one runs before it
        await asyncio.wait([greedy[1]])
        assert line.scheduler.waiting == 2
        for number, task in ((0, first), (1, greedy[0]), (3, other)):
            line.leave[number].set()
            await task
        assert line.granted == [0, 1, 3]
        assert (line.scheduler.running, line.scheduler.waiting) == (0, 0)


class Narrow(ScriptedRuntime):
    """Two slots that share room for ten ids."""

    room = 10

    def has_room(self, prompt: Prompt) -> bool:
        return len(prompt.token_ids) <= self.room


async def test_a_long_prompt_waits_for_room_and_no_short_one_overtakes_it() -> None:
    scheduler = Scheduler(WaitingRoom(4, 30))
    runtime = Narrow(says_hi, limits=Limits(256, 255, 2))
    granted: list[int] = []

    async def client(size: int) -> None:
        async with scheduler.turn(model, Prompt((1,) * size, ChatRequest("r"))):
            granted.append(size)

    async with served_model(runtime, on_change=scheduler.dispatch) as model:
        tasks = [asyncio.create_task(client(size)) for size in (11, 1)]
        await asyncio.sleep(0.01)
        assert granted == []
        runtime.room = 11
        scheduler.dispatch()
        await asyncio.gather(*tasks)
    assert granted == [11, 1]
