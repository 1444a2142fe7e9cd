import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qwen_service.engine import BringUp, Engine
from qwen_service.engines import manager as manager_module
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.served import ServedModel
from qwen_service.errors import Died, Loading, NotLoaded, QueueFull, StartFailed, Unavailable, UnknownModel
from qwen_service.models.catalog import Catalog
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.runtime import LoadProgress
from qwen_service.settings import Settings
from tests.fakes import ScriptedRuntime
from tests.serving import brings_up, says_hi, settings_with_models
from tests.waiting import until

LINGERS = 0.3  # seconds


class Machines:
    """Brings up scripted runtimes, model by model; a model fails while `broken` holds a reason for it."""

    def __init__(self) -> None:
        self.broken: dict[str, Exception] = {}
        self.runtimes: dict[str, list[ScriptedRuntime]] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    def loaders(self, model: InstalledModel, settings: Settings, machine: Machine) -> dict[str, BringUp]:
        async def bring_up(progress: LoadProgress) -> Engine:
            await self.gate.wait()
            if model.name in self.broken:
                raise self.broken[model.name]
            return await brings_up(lambda: self.made(model.name))(progress)

        return {model.name: bring_up}

    def made(self, name: str) -> ScriptedRuntime:
        runtime = ScriptedRuntime(says_hi)
        self.runtimes.setdefault(name, []).append(runtime)
        return runtime


@asynccontextmanager
async def manager(
    folder: Path, *names: str, machines: Machines | None = None, machine: Machine | None = None, **settings: Any
) -> AsyncGenerator[ModelManager, None]:
    made = settings_with_models(folder, *names, **settings)
    manager = ModelManager(
        made,
        Catalog.load(made.models_dir),
        machine or Machine(),
        on_change=lambda: None,
        loaders=(machines or Machines()).loaders,
        fallback_lingers=LINGERS,
    )
    await manager.start()
    if manager.current is not None and (machines is None or machines.gate.is_set()):
        await manager.current.first_load_done()
    try:
        yield manager
    finally:
        await manager.stop()


def current(models: ModelManager) -> ServedModel:
    assert models.current is not None
    return models.current


async def test_the_configured_model_is_loaded_and_found_by_its_names(tmp_path: Path) -> None:
    async with manager(tmp_path, "a", "b", model="b") as models:
        assert current(models).name == "b"
        for name in (None, "b", "B", "b:latest"):
            assert await models.obtain(name) is models.current


async def test_auto_takes_the_first_installed_model_that_runs_here(tmp_path: Path) -> None:
    async with manager(tmp_path, "a", "b", model="auto") as models:
        assert current(models).name == "a"


async def test_further_names_come_from_the_configuration(tmp_path: Path) -> None:
    async with manager(tmp_path, "a", model_aliases={"gpt-4o-mini": "a"}) as models:
        assert await models.obtain("gpt-4o-mini") is models.current


@pytest.mark.parametrize("name", ["gpt-5", "../../etc/passwd", "", " "])
async def test_an_unknown_model_is_refused_with_those_that_exist(tmp_path: Path, name: str) -> None:
    async with manager(tmp_path, "a", "b") as models:
        if not name:
            assert await models.obtain(name) is models.current
            return
        with pytest.raises(UnknownModel, match=r"a, b"):
            await models.obtain(name)


async def test_an_unknown_model_can_mean_the_loaded_one(tmp_path: Path) -> None:
    async with manager(tmp_path, "a", unknown_model="default") as models:
        assert await models.obtain("gpt-5") is models.current


async def test_without_any_model_the_reason_and_the_cure_are_told(tmp_path: Path) -> None:
    async with manager(tmp_path, model="auto") as models:
        assert models.current is None
        with pytest.raises(Unavailable, match="qwen-service pull"):
            await models.obtain(None)


async def test_a_model_that_is_installed_later_is_served_once_it_is_all_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "LOOK_EVERY", 0.05)
    async with manager(tmp_path, model="auto") as models:
        with (tmp_path / "models/late.gguf").open("wb") as file:
            for _ in range(6):  # it is being copied
                file.write(b"GGUF" * 1000)
                file.flush()
                await asyncio.sleep(0.04)
                assert models.current is None
        await until(lambda: models.current is not None and models.current.phase == "ready")
        assert current(models).name == "late"
        assert models.trouble == ""


async def test_a_configured_model_that_is_not_installed_is_told(tmp_path: Path) -> None:
    async with manager(tmp_path, "a", model="c") as models:
        assert "'c'" in models.trouble


async def test_a_gguf_file_is_served_without_a_catalog(tmp_path: Path) -> None:
    file = tmp_path / "My-Model.Q4_0.gguf"
    file.write_bytes(b"GGUF")
    async with manager(tmp_path, model_path=file) as models:
        assert current(models).name == "my-model.q4_0"
        assert models.installed()[0].name == "my-model.q4_0"


async def test_another_model_is_loaded_on_demand_and_the_first_one_stopped(tmp_path: Path) -> None:
    machines = Machines()
    async with manager(tmp_path, "a", "b", machines=machines) as models:
        assert (await models.obtain("b")).name == "b"
        assert current(models).name == "b"
        assert machines.runtimes["a"][0].stopped == 1
        assert (await models.obtain("a")).engine is not None
        assert len(machines.runtimes["a"]) == 2


async def test_without_autoload_only_an_administrator_switches(tmp_path: Path) -> None:
    async with manager(tmp_path, "a", "b", autoload="off") as models:
        with pytest.raises(NotLoaded, match="b is installed"):
            await models.obtain("b")
        assert (await models.load("b")).name == "b"


async def test_a_model_that_does_not_load_is_replaced_by_the_former_one(tmp_path: Path) -> None:
    machines = Machines()
    machines.broken["b"] = StartFailed("out of memory.")
    async with manager(tmp_path, "a", "b", machines=machines) as models:
        with pytest.raises(StartFailed, match=r"out of memory\. The service went back to a"):
            await models.obtain("b")
        await current(models).first_load_done()
        assert (current(models).name, current(models).phase) == ("a", "ready")
        assert models.switching_to == ""


async def test_running_replies_end_before_the_switch_and_new_ones_are_sent_away(tmp_path: Path) -> None:
    async with manager(tmp_path, "a", "b") as models:
        old = current(models)
        with old.in_use():
            switch = asyncio.create_task(models.obtain("b"))
            await until(lambda: models.switching_to == "b")
            assert old.engine is not None
            for name in (None, "a"):
                with pytest.raises(Loading, match="a is being replaced by b"):
                    await models.obtain(name)
        assert (await switch).name == "b"
        assert (await models.obtain(None)).name == "b"


async def test_a_model_that_stays_busy_is_not_replaced(tmp_path: Path) -> None:
    async with manager(tmp_path, "a", "b", drain_timeout=0.05) as models:
        with current(models).in_use(), pytest.raises(Loading, match=r"drain_timeout"):
            await models.obtain("b")
        assert (await models.obtain(None)).name == "a"


async def test_a_client_that_leaves_while_its_switch_waits_takes_it_back(tmp_path: Path) -> None:
    async with manager(tmp_path, "a", "b") as models:
        with current(models).in_use():
            switch = asyncio.create_task(models.obtain("b"))
            await until(lambda: models.switching_to == "b")
            switch.cancel()
            await asyncio.wait([switch])
            assert (await models.obtain(None)).name == "a"


async def test_a_client_that_leaves_in_the_middle_of_a_switch_does_not_leave_it_half_done(tmp_path: Path) -> None:
    machines = Machines()
    async with manager(tmp_path, "a", "b", machines=machines) as models:
        machines.gate.clear()
        switch = asyncio.create_task(models.obtain("b"))
        await until(lambda: current(models).name == "b")
        switch.cancel()
        await asyncio.sleep(0)
        machines.broken["b"] = StartFailed("broken")
        machines.gate.set()
        await asyncio.wait([switch])
        assert switch.cancelled()
        await current(models).first_load_done()
        assert (current(models).name, current(models).phase) == ("a", "ready")


async def test_stopping_in_the_middle_of_a_switch_leaves_nothing_running(tmp_path: Path) -> None:
    machines = Machines()
    async with manager(tmp_path, "a", "b", machines=machines) as models:
        machines.gate.clear()
        switch = asyncio.create_task(models.obtain("b"))
        await until(lambda: current(models).name == "b")
    assert current(models).phase == "stopped"
    machines.gate.set()
    await asyncio.wait([switch], timeout=20)
    assert switch.done()
    assert "b" not in machines.runtimes


async def test_switches_come_one_after_the_other(tmp_path: Path) -> None:
    machines = Machines()
    async with manager(tmp_path, "a", "b", "c", machines=machines) as models:
        served = await asyncio.gather(models.obtain("b"), models.obtain("c"), models.obtain("b"))
        assert [model.name for model in served] == ["b", "c", "b"]
        assert [runtime.stopped for made in machines.runtimes.values() for runtime in made].count(0) == 1


async def test_only_so_many_requests_wait_for_a_switch(tmp_path: Path) -> None:
    async with manager(tmp_path, "a", "b", queue_size=1) as models:
        with current(models).in_use():
            switch = asyncio.create_task(models.obtain("b"))
            await until(lambda: models.switching_to == "b")
            with pytest.raises(QueueFull):
                await models.obtain("b")
        await switch


async def test_a_reload_restarts_the_same_model(tmp_path: Path) -> None:
    machines = Machines()
    async with manager(tmp_path, "a", machines=machines) as models:
        assert (await models.reload()).name == "a"
        assert [runtime.stopped for runtime in machines.runtimes["a"]] == [1, 0]


CARD = "runtime: ax_repl\ntokenizer: .\nprograms: {axcl_arm64: {candidates: [main]}}\n"


def machine_with_a_card(folder: Path) -> Machine:
    (folder / "dev").mkdir()
    (folder / "dev" / "axcl_host").touch()
    return Machine(root=folder, machine="aarch64")


def make_card_model(folder: Path, name: str) -> None:
    settings_with_models(folder, name)
    manifest = folder / "models" / "manifests" / f"{name}.yaml"
    manifest.write_text(manifest.read_text().replace("runtime: llamacpp\n", CARD))


@asynccontextmanager
async def card_manager(
    folder: Path, machine: Machine, machines: Machines | None = None, **settings: Any
) -> AsyncGenerator[ModelManager, None]:
    """One model for the card and one for the CPU."""
    settings_with_models(folder, "cpu")
    make_card_model(folder, "card")
    async with manager(folder, machine=machine, machines=machines, **{"model": "auto", **settings}) as models:
        yield models


async def test_the_card_is_used_where_there_is_one(tmp_path: Path) -> None:
    async with card_manager(tmp_path, machine_with_a_card(tmp_path)) as models:
        assert current(models).name == "card"


async def test_the_processor_is_used_where_there_is_no_card(tmp_path: Path) -> None:
    async with card_manager(tmp_path, Machine(root=tmp_path, machine="aarch64")) as models:
        assert current(models).name == "cpu"
        with pytest.raises(NotLoaded):
            await models.obtain("card")
        with pytest.raises(Unavailable, match="no Axera card"):
            await models.load("card")


@pytest.mark.parametrize("settings", [{"model": "card"}, {"accelerator": "required"}])
async def test_where_no_other_model_is_wanted_its_program_decides_whether_there_is_a_card(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    machines = Machines()
    machines.broken["card"] = StartFailed("The card's driver is not loaded.", permanent=True)
    machine = Machine(root=tmp_path, machine="aarch64")
    async with card_manager(tmp_path, machine, machines, **settings) as models:
        assert (current(models).name, current(models).phase) == ("card", "failed")
        with pytest.raises(Unavailable, match="no Axera card"):
            await models.load("card")
        del machines.broken["card"]
        assert (await models.reload()).phase == "ready"


async def test_a_model_that_has_no_program_for_this_machine_is_not_served(tmp_path: Path) -> None:
    async with card_manager(tmp_path, Machine(root=tmp_path, machine="riscv64"), model="card") as models:
        assert models.current is None
        assert "processor (riscv64)" in models.trouble


@pytest.mark.parametrize(("accelerator", "expected"), [("none", "cpu"), ("required", "card")])
async def test_the_accelerator_can_be_required_or_left_out(tmp_path: Path, accelerator: str, expected: str) -> None:
    async with card_manager(tmp_path, machine_with_a_card(tmp_path), accelerator=accelerator) as models:
        assert current(models).name == expected


async def test_a_processor_model_stands_in_while_the_card_is_down(tmp_path: Path) -> None:
    machines = Machines()
    machines.broken["card"] = StartFailed("the card does not answer")
    async with card_manager(
        tmp_path, machine_with_a_card(tmp_path), machines, fallback_model="cpu", fallback_after=0.05
    ) as models:
        await until(lambda: models.fallback is not None and models.fallback.engine is not None)
        standing_in = await models.obtain("card")
        assert (standing_in.name, standing_in.is_fallback) == ("cpu", True)
        del machines.broken["card"]
        await until(lambda: current(models).engine is not None)
        assert await models.obtain("card") is models.current


async def test_a_stand_in_that_cannot_be_made_is_told_and_made_later(tmp_path: Path) -> None:
    class FullDisk(Machines):
        failures = 2

        def loaders(self, model: InstalledModel, settings: Settings, machine: Machine) -> dict[str, BringUp]:
            if model.name == "cpu" and self.failures:
                self.failures -= 1
                raise OSError("No space left on device")
            return super().loaders(model, settings, machine)

    machines = FullDisk()
    machines.broken["card"] = StartFailed("the card does not answer")
    settings: dict[str, Any] = {"fallback_model": "cpu", "fallback_after": 0.05}
    async with card_manager(tmp_path, machine_with_a_card(tmp_path), machines, **settings) as models:
        await until(lambda: "No space left" in models.trouble)
        await until(lambda: models.fallback is not None and models.fallback.engine is not None)
        assert models.trouble == ""


@asynccontextmanager
async def card_that_is_back(folder: Path, machines: Machines) -> AsyncGenerator[tuple[ModelManager, ServedModel], None]:
    """With the model that stood in for it and still runs."""
    machines.broken["card"] = StartFailed("the card does not answer")
    settings: dict[str, Any] = {"fallback_model": "cpu", "fallback_after": 0.05}
    async with card_manager(folder, machine_with_a_card(folder), machines, **settings) as models:
        await until(lambda: models.fallback is not None and models.fallback.engine is not None)
        assert models.fallback is not None
        del machines.broken["card"]
        await until(lambda: current(models).engine is not None)
        yield models, models.fallback


async def test_the_stand_in_lingers_and_is_unloaded_when_nobody_uses_it_any_more(tmp_path: Path) -> None:
    machines = Machines()
    async with card_that_is_back(tmp_path, machines) as (models, stand_in):
        with stand_in.in_use():
            await asyncio.sleep(2 * LINGERS)
            assert models.fallback is stand_in
        await until(lambda: models.fallback is None)
        assert machines.runtimes["cpu"][0].stopped == 1


async def test_the_stand_in_stays_when_the_card_is_lost_again_meanwhile(tmp_path: Path) -> None:
    machines = Machines()
    async with card_that_is_back(tmp_path, machines) as (models, stand_in):
        machines.broken["card"] = StartFailed("lost again")
        machines.runtimes["card"][-1].fail_with(Died("lost again"))
        await until(lambda: current(models).engine is None)
        await asyncio.sleep(2 * LINGERS)
        assert models.fallback is stand_in
        assert (stand_in.phase, machines.runtimes["cpu"][0].stopped) == ("ready", 0)


async def test_a_fallback_that_is_not_installed_is_told(tmp_path: Path) -> None:
    async with card_manager(tmp_path, machine_with_a_card(tmp_path), fallback_model="other") as models:
        assert "fallback_model" in models.trouble
        assert current(models).phase == "ready"
