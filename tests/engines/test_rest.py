"""A model that nobody uses is unloaded, and loaded again by the next request; never under one."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from qwen_service.engines.served import ServedModel
from qwen_service.engines.supervisor import Supervisor
from qwen_service.engines.waiting_room import Patience, WaitingRoom
from tests.fakes import ScriptedRuntime
from tests.live_service import Live, ScriptedEngine, live_service
from tests.serving import brings_up, installed, says_hi

HI = [{"role": "user", "content": "Hi"}]


class Place:
    """Where runtimes are started; counts them."""

    def __init__(self) -> None:
        self.runtimes: list[ScriptedRuntime] = []

    def make(self) -> ScriptedRuntime:
        self.runtimes.append(ScriptedRuntime(says_hi))
        return self.runtimes[-1]

    @property
    def running(self) -> int:
        return sum(not runtime.stopped for runtime in self.runtimes)


@asynccontextmanager
async def served(place: Place, *, on_card: bool = False, **fields: Any) -> AsyncGenerator[ServedModel, None]:
    spec: dict[str, Any] = {"load_seconds": 1.0}
    model = installed(**spec)
    if on_card:
        object.__setattr__(model.spec, "runtime", "ax_api")
    supervisor = Supervisor("m", brings_up(place.make), on_change=lambda: None)
    one = ServedModel(model, (supervisor,), **fields)
    one.start()
    await supervisor.finished_loading()
    try:
        yield one
    finally:
        await one.stop()


async def asleep(model: ServedModel, place: Place) -> None:
    async with asyncio.timeout(30):
        while not (model.asleep and place.running == 0):  # noqa: ASYNC110 # nobody else tells
            await asyncio.sleep(0)


async def use(model: ServedModel, keep: float | None = None) -> None:
    with model.in_use():
        model.rest.keep(keep)
        engine = await model.ready(WaitingRoom(100, 30), Patience(30))
        await asyncio.sleep(0)
        assert model.engine is engine


async def test_after_its_time_it_is_unloaded_and_the_next_request_loads_it() -> None:
    place = Place()
    async with served(place, unload_when_idle=0.05) as model:
        await asleep(model, place)
        assert (model.phase, model.down_for, model.engine) == ("stopped", 0.0, None)
        await use(model)
        assert (len(place.runtimes), place.running) == (2, 1)
        await asleep(model, place)
    assert place.running == 0


async def test_a_request_that_runs_keeps_it() -> None:
    place = Place()
    async with served(place, unload_when_idle=0.01) as model:
        await asleep(model, place)
        with model.in_use():
            await model.ready(WaitingRoom(1, 30), Patience(30))
            await asyncio.sleep(0.2)
            assert (model.asleep, place.running) == (False, 1)
        await asleep(model, place)


async def test_keep_alive_of_a_request_counts_until_the_next() -> None:
    place = Place()
    async with served(place) as model:
        assert model.rest.seconds_left() is None
        await use(model, keep=300)
        assert 290 < (model.rest.seconds_left() or 0) <= 300
        await use(model)
        assert model.rest.seconds_left() is None
        await use(model, keep=float("inf"))
        assert model.rest.seconds_left() is None
        await use(model, keep=0)
        await asleep(model, place)


async def test_unloading_at_once_waits_for_who_uses_it() -> None:
    place = Place()
    async with served(place) as model:
        with model.in_use():
            assert await model.rest.unload_now()
            assert (model.asleep, place.running) == (False, 1)
        await asleep(model, place)
        assert await model.rest.unload_now()  # again: nothing to do


async def test_on_a_card_it_stays_unless_the_configuration_allows_it() -> None:
    place = Place()
    async with served(place, on_card=True) as model:
        assert not await model.rest.unload_now()
        await use(model, keep=0)
        assert (model.asleep, place.running) == (False, 1)
    async with served(Place(), on_card=True, unload_when_idle=3600) as model:
        assert await model.rest.unload_now()
        assert model.asleep


async def test_whoever_comes_while_it_is_unloaded_finds_it_loaded_again() -> None:
    place, rng = Place(), random.Random(3)
    async with served(place, unload_when_idle=0.0) as model:

        async def client() -> None:
            for _ in range(20):
                await use(model, rng.choice([None, 0, 0.001]))
                await asyncio.sleep(rng.choice([0, 0, 0.001, 0.003]))

        async with asyncio.timeout(60):
            await asyncio.gather(*(client() for _ in range(5)))
        await asleep(model, place)
    assert len(place.runtimes) > 3
    assert place.running == 0


@asynccontextmanager
async def service(folder: Path, **settings: Any) -> AsyncGenerator[Live, None]:
    engine = ScriptedEngine()
    engine.gate.set()
    async with live_service(folder, engine, **settings) as live:
        yield live


async def loaded(live: Live) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = (await live.http.get("/api/ps")).json()["models"]
    return models


async def test_ollamas_clients_unload_and_load_and_are_told_the_truth(tmp_path: Path) -> None:
    async with service(tmp_path) as live:
        (before,) = await loaded(live)
        assert before["expires_at"] > "2100"
        gone = await live.http.post("/api/generate", json={"model": "model", "keep_alive": 0})
        assert (gone.json()["done_reason"], await loaded(live)) == ("unload", [])
        health = await live.http.get("/health")
        details = health.json()["details"]
        assert (health.json()["status"], details["model"]["state"], details["tokenizer"]) == ("ok", "unloaded", "ok")
        assert (await live.http.get("/health/ready")).status_code == 200
        body = {"model": "model", "messages": HI, "stream": False, "keep_alive": "10m"}
        answer = await live.http.post("/api/chat", json=body)
        assert answer.json()["message"]["content"] == "Hello!"
        (again,) = await loaded(live)
        assert again["expires_at"] < "2100"
        await live.http.post("/api/generate", json={"model": "model", "keep_alive": 0})
        back = await live.http.post("/api/generate", json={"model": "model", "keep_alive": -1})
        assert (back.json()["done_reason"], len(await loaded(live))) == ("load", 1)
        assert (await live.chat()).status_code == 200
        assert len(live.engine.runtimes) == 3


async def test_keep_alive_0_unloads_after_the_reply_that_is_still_running(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with live_service(tmp_path, engine) as live:
        talking = asyncio.create_task(live.chat())
        await live.until(running=1)
        gone = await live.http.post("/api/generate", json={"model": "model", "keep_alive": 0})
        assert (gone.json()["done_reason"], len(await loaded(live))) == ("unload", 1)
        engine.gate.set()
        assert (await talking).json()["choices"][0]["message"]["content"] == "Hello!"


async def test_an_idle_model_is_unloaded_by_the_configuration(tmp_path: Path) -> None:
    async with service(tmp_path, unload_when_idle=0.2) as live:
        async with asyncio.timeout(60):
            while await loaded(live):  # noqa: ASYNC110 # its time: only the clock helps
                await asyncio.sleep(0.02)
        assert (await live.chat()).status_code == 200
        assert len(live.engine.runtimes) == 2
