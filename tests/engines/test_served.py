import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qwen_service.engine import Engine
from qwen_service.engines.served import ServedModel
from qwen_service.engines.supervisor import Supervisor
from qwen_service.engines.waiting_room import Patience, WaitingRoom
from qwen_service.errors import Died, Loading, QueueFull, StartFailed, Unavailable
from qwen_service.models.installed import InstalledModel
from qwen_service.models.spec import ModelSpec
from qwen_service.runtime import LoadProgress
from tests.fakes import ScriptedRuntime
from tests.serving import installed, model_text, says_hi, served_model
from tests.waiting import until


class Loader:
    """Says how far it is; ends when `finish` is called, with an engine or with a failure."""

    def __init__(self) -> None:
        self._end: asyncio.Future[ScriptedRuntime] = asyncio.get_running_loop().create_future()

    async def bring_up(self, progress: LoadProgress) -> Engine:
        progress("loading 17/31")
        runtime = await self._end
        return Engine(runtime, runtime.limits, model_text())

    def finish(self, failure: StartFailed | None = None) -> None:
        if failure:
            self._end.set_exception(failure)
        else:
            self._end.set_result(ScriptedRuntime(says_hi))


@asynccontextmanager
async def loading_model(**spec: Any) -> AsyncGenerator[tuple[ServedModel, Loader], None]:
    loader = Loader()
    model = ServedModel(installed(**spec), (Supervisor("m", loader.bring_up, on_change=lambda: None),))
    model.start()
    await asyncio.sleep(0)
    try:
        yield model, loader
    finally:
        await model.stop()


async def test_a_model_that_is_ready_is_given_at_once() -> None:
    async with served_model(ScriptedRuntime(says_hi)) as model:
        assert await model.ready(WaitingRoom(0, 0), Patience(0)) is model.engine
        assert model.down_for == 0


async def test_a_quick_load_is_waited_for() -> None:
    async with loading_model() as (model, loader):
        waiting = asyncio.create_task(model.ready(WaitingRoom(1, 30), Patience(30)))
        await asyncio.sleep(0)
        loader.finish()
        assert await waiting is model.engine


async def test_a_slow_load_is_not_waited_for_and_its_progress_is_told() -> None:
    async with loading_model(load_seconds=120) as (model, _):
        with pytest.raises(Loading, match=r"m is loading \(loading 17/31\)") as caught:
            await model.ready(WaitingRoom(4, 30), Patience(30))
        assert caught.value.retry_after == 120


async def test_a_load_elsewhere_is_waited_for_where_its_owner_says_so() -> None:
    async with loading_model(load_seconds=120) as (model, loader):
        model.loads_quickly = lambda: True
        waiting = asyncio.create_task(model.ready(WaitingRoom(1, 30), Patience(30)))
        await asyncio.sleep(0)
        loader.finish()
        assert await waiting is model.engine


async def test_a_load_is_waited_for_so_long_and_no_longer() -> None:
    async with loading_model() as (model, _):
        with pytest.raises(Loading):
            await model.ready(WaitingRoom(4, 0.02), Patience(0.02))


async def test_only_so_many_wait_for_a_load() -> None:
    async with loading_model() as (model, loader):
        room = WaitingRoom(1, 30)
        first = asyncio.create_task(model.ready(room, Patience(30)))
        await asyncio.sleep(0)
        assert room.waiting == 1
        with pytest.raises(QueueFull, match="queue_size"):
            await model.ready(room, Patience(30))
        loader.finish()
        await first
        assert room.waiting == 0


async def test_who_waits_for_a_load_that_is_given_up_is_told_why() -> None:
    async with loading_model() as (model, loader):
        waiting = asyncio.create_task(model.ready(WaitingRoom(1, 30), Patience(30)))
        await asyncio.sleep(0)
        loader.finish(StartFailed("no card", permanent=True))
        with pytest.raises(Unavailable, match="m cannot run: no card"):
            await waiting
        with pytest.raises(Unavailable):
            await model.ready(WaitingRoom(1, 30), Patience(30))


async def test_a_model_that_was_stopped_is_not_waited_for() -> None:
    async with loading_model() as (model, _):
        await model.stop()
        with pytest.raises(Loading, match="not running any more"):
            await model.ready(WaitingRoom(1, 30), Patience(30))


class SlowToStop(ScriptedRuntime):
    def __init__(self) -> None:
        super().__init__(says_hi)
        self.may_stop = asyncio.Event()

    async def stop(self) -> None:
        await self.may_stop.wait()


async def test_a_model_that_is_being_stopped_is_not_waited_for() -> None:
    runtime = SlowToStop()
    async with served_model(runtime) as model:
        stopping = asyncio.create_task(model.stop())
        await until(lambda: model.engine is None)
        with pytest.raises(Loading, match="not running any more"):
            await model.ready(WaitingRoom(1, 30), Patience(30))
        assert not stopping.done()
        runtime.may_stop.set()
        await stopping


async def test_one_device_of_two_is_enough() -> None:
    runtimes = ScriptedRuntime(says_hi), ScriptedRuntime(says_hi)
    async with served_model(*runtimes) as model:
        runtimes[0].fail_with(Died("killed"))
        await until(lambda: model.supervisors[0].phase != "ready")
        assert model.phase == "ready"
        assert (await model.ready(WaitingRoom(0, 0), Patience(0))).runtime is runtimes[1]
        assert model.down_for == 0


class Counting(Supervisor):
    asked = 0

    async def finished_loading(self) -> None:
        self.asked += 1
        await super().finished_loading()


async def test_a_device_that_has_given_up_is_not_asked_again_and_again_while_the_other_loads() -> None:
    broken, good = Loader(), Loader()
    supervisors = tuple(Counting("m", loader.bring_up, on_change=lambda: None) for loader in (broken, good))
    model = ServedModel(installed(), supervisors)
    model.start()
    broken.finish(StartFailed("no such card", permanent=True))
    await supervisors[0].finished_loading()
    waiting = asyncio.create_task(model.ready(WaitingRoom(1, 30), Patience(30)))
    await asyncio.sleep(0.05)
    assert sum(supervisor.asked for supervisor in supervisors) < 5
    good.finish()
    assert await waiting is supervisors[1].engine
    await model.stop()


async def test_the_time_it_is_down_is_counted() -> None:
    runtime = ScriptedRuntime(says_hi)
    async with served_model(runtime) as model:
        runtime.fail_with(Died("killed"))
        await until(lambda: model.engine is None)
        await asyncio.sleep(0.02)
        assert 0.01 < model.down_for < 30


async def test_it_is_unused_when_its_last_user_has_left() -> None:
    async with served_model(ScriptedRuntime(says_hi)) as model:
        await model.unused()
        with model.in_use():
            with model.in_use():
                unused = asyncio.create_task(model.unused())
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not unused.done()
        await unused


async def test_a_card_whose_load_nobody_has_measured_is_not_waited_for() -> None:
    async with loading_model() as (model, _):
        model.installed = InstalledModel(ModelSpec("m", "ax_api", ()), Path())
        with pytest.raises(Loading, match=r"loading 17/31"):
            await model.ready(WaitingRoom(1, 20), Patience(20))
