"""Switching models, and the CPU model that stands in for the card."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from qwen_service.chat import ChatRequest, Event, Finished, Message, Sampling, Started
from qwen_service.engine import BringUp, Engine
from qwen_service.engines.switch import Step, steps_of
from qwen_service.errors import Died, Loading, NotLoaded, StartFailed, Unavailable, UnknownModel
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.runtime import Limits, LoadProgress, Piece, Prefill, Prompt
from qwen_service.settings import Settings
from tests.fakes import ScriptedRuntime
from tests.serving import Pipeline, model_text, pipeline, says_hi, settings_with_models
from tests.waiting import until


class Workshop:
    """Makes a runtime for each load and remembers it; a model named in `broken` does not come up."""

    def __init__(self) -> None:
        self.runtimes: dict[str, list[ScriptedRuntime]] = {}
        self.broken: dict[str, StartFailed] = {}
        self.progress: dict[str, list[str]] = {}  # what is told while it comes up
        self.script = says_hi

    def loaders(self, model: InstalledModel, settings: Settings, machine: Machine) -> dict[str, BringUp]:
        async def bring_up(progress: LoadProgress) -> Engine:
            if model.name in self.broken:
                raise self.broken[model.name]
            for text in self.progress.get(model.name, ()):
                progress(text)
            runtime = ScriptedRuntime(self.script)
            self.runtimes.setdefault(model.name, []).append(runtime)
            return Engine(runtime, Limits(256, 255), model_text())

        return {model.name: bring_up}

    def answer_slowly(self) -> asyncio.Event:
        """A second token comes when the event is set."""
        go_on = asyncio.Event()

        async def slowly(prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
            yield Piece("a", 1)
            await go_on.wait()
            yield Piece("b", 1, finish_reason="stop")

        self.script = slowly
        return go_on


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


async def ask(service: Pipeline, model: str | None = None) -> list[Event]:
    request = ChatRequest("r", model=model, messages=(Message("user", "Hello"),))
    return [event async for event in service.chat.stream(request)]


def answered_by(events: list[Event]) -> Started:
    assert isinstance(events[-1], Finished)
    assert isinstance(events[0], Started)
    return events[0]


async def test_a_switch_stops_the_old_model_before_the_new_one_is_loaded(tmp_path: Path, workshop: Workshop) -> None:
    async with pipeline(settings_with_models(tmp_path, "one", "two"), workshop.loaders) as service:
        new = await service.models.load("two")
        assert new is service.models.current
        assert workshop.runtimes["one"][0].stopped == 1
        assert answered_by(await ask(service, "two")).model == "two"


async def test_a_switch_waits_for_the_reply_that_is_running(tmp_path: Path, workshop: Workshop) -> None:
    go_on = workshop.answer_slowly()
    async with pipeline(settings_with_models(tmp_path, "one", "two"), workshop.loaders) as service:
        running = asyncio.create_task(ask(service))
        await until(lambda: service.scheduler.running == 1)
        switching = asyncio.create_task(service.models.load("two"))
        await until(lambda: service.models.switching_to == "two")
        await asyncio.sleep(0.05)  # nothing is stopped meanwhile
        assert workshop.runtimes["one"][0].stopped == 0
        go_on.set()
        assert answered_by(await running).model == "one"
        assert (await switching).name == "two"
        assert service.models.switching_to == ""


async def test_a_switch_tells_each_step_once(tmp_path: Path, workshop: Workshop) -> None:
    go_on = workshop.answer_slowly()
    workshop.progress["two"] = ["layer 1/2", "layer 1/2", "layer 2/2"]
    async with pipeline(settings_with_models(tmp_path, "one", "two"), workshop.loaders) as service:
        running = asyncio.create_task(ask(service))
        await until(lambda: service.scheduler.running == 1)
        steps = steps_of(partial(service.models.load, "two"))
        assert await anext(steps) == Step("two", "draining", "requests to one that are running: 1")
        second = steps_of(partial(service.models.load, "one"))
        assert await anext(second) == Step("one", "waiting", "a switch to two is going on")
        await second.aclose()
        go_on.set()
        assert [step async for step in steps] == [
            Step("two", "stopping", "one"),
            Step("two", "loading"),
            Step("two", "loading", "layer 1/2"),
            Step("two", "loading", "layer 2/2"),
            Step("two", "ready"),
        ]
        await running


async def test_a_switch_that_fails_tells_why_after_its_steps(tmp_path: Path, workshop: Workshop) -> None:
    workshop.broken["two"] = StartFailed("a file is missing.", permanent=True)
    async with pipeline(settings_with_models(tmp_path, "one", "two"), workshop.loaders) as service:
        steps = steps_of(partial(service.models.load, "two"))
        assert [await anext(steps), await anext(steps)] == [Step("two", "stopping", "one"), Step("two", "loading")]
        with pytest.raises(StartFailed, match=r"a file is missing\. The service went back to one"):
            await anext(steps)


async def test_a_busy_model_is_kept_when_it_does_not_drain_in_time(tmp_path: Path, workshop: Workshop) -> None:
    async def for_ever(prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        yield Piece("a", 1)
        await asyncio.Event().wait()

    workshop.script = for_ever
    settings = settings_with_models(tmp_path, "one", "two", drain_timeout=0.05)
    async with pipeline(settings, workshop.loaders) as service:
        running = asyncio.create_task(ask(service))
        await until(lambda: service.scheduler.running == 1)
        with pytest.raises(Loading, match=r"one was still busy .*drain_timeout"):
            await service.models.load("two")
        assert service.models.current is not None
        assert service.models.current.name == "one"
        running.cancel()


async def test_a_failed_load_goes_back_to_the_old_model_and_says_why(tmp_path: Path, workshop: Workshop) -> None:
    workshop.broken["two"] = StartFailed("a file is missing.", permanent=True)
    async with pipeline(settings_with_models(tmp_path, "one", "two"), workshop.loaders) as service:
        with pytest.raises(
            StartFailed, match=r"two could not be loaded: a file is missing\. The service went back to one"
        ):
            await service.models.load("two")
        assert service.models.current is not None
        await service.models.current.first_load_done()
        assert answered_by(await ask(service)).model == "one"


async def test_loading_the_model_that_is_loaded_changes_nothing(tmp_path: Path, workshop: Workshop) -> None:
    async with pipeline(settings_with_models(tmp_path, "one"), workshop.loaders) as service:
        assert await service.models.load("one") is service.models.current
        assert workshop.runtimes["one"][0].stopped == 0


async def test_only_installed_models_can_be_loaded(tmp_path: Path, workshop: Workshop) -> None:
    async with pipeline(settings_with_models(tmp_path, "one"), workshop.loaders) as service:
        with pytest.raises(UnknownModel, match="one"):
            await service.models.load("three")


async def test_a_request_for_another_cpu_model_switches_by_itself(tmp_path: Path, workshop: Workshop) -> None:
    async with pipeline(settings_with_models(tmp_path, "one", "two"), workshop.loaders) as service:
        assert answered_by(await ask(service, "two")).model == "two"
        assert answered_by(await ask(service, "one")).model == "one"


async def test_autoload_off_refuses_a_model_that_is_not_loaded(tmp_path: Path, workshop: Workshop) -> None:
    async with pipeline(settings_with_models(tmp_path, "one", "two", autoload="off"), workshop.loaders) as service:
        with pytest.raises(NotLoaded, match=r"two is installed, but not loaded \(loaded: one\)"):
            await ask(service, "two")


CARD = """
runtime: ax_repl
tokenizer: tok
programs: {axcl_arm64: {candidates: [main]}, axcl_x86_64: {candidates: [main]}, ax650: {candidates: [main]}}
"""


def card_and_cpu(folder: Path) -> Settings:
    """A card's model, `card`, and a CPU model, `cpu`; the manifest of the first is written over."""
    settings = settings_with_models(folder, "card", "cpu", fallback_model="cpu", fallback_after=0.1)
    manifest = settings.models_dir / "manifests" / "card.yaml"
    manifest.write_text("name: card\nfiles: [{path: weights.gguf}]\n" + CARD)
    return settings


class CardMachine(Machine):
    @property
    def has_npu(self) -> bool:
        return True


async def with_card(settings: Settings, workshop: Workshop, test: Callable[[Pipeline], Awaitable[None]]) -> None:
    async with pipeline(settings, workshop.loaders, machine=CardMachine()) as service:
        await test(service)


async def test_the_cpu_answers_while_the_card_is_down_and_the_card_when_it_is_back(
    tmp_path: Path, workshop: Workshop
) -> None:
    async def test(service: Pipeline) -> None:
        assert answered_by(await ask(service)).model == "card"
        workshop.broken["card"] = StartFailed("the card does not answer")
        workshop.runtimes["card"][0].fail_with(Died("it died"))
        await until(lambda: service.models.fallback is not None and service.models.fallback.engine is not None)
        started = answered_by(await ask(service, "card"))
        assert (started.model, started.served_by) == ("cpu", "llamacpp (fallback)")
        del workshop.broken["card"]
        current = service.models.current
        assert current is not None
        await until(lambda: current.engine is not None)
        assert answered_by(await ask(service)).model == "card"

    await with_card(card_and_cpu(tmp_path), workshop, test)


async def test_the_cpu_answers_from_the_start_when_the_card_never_comes_up(tmp_path: Path, workshop: Workshop) -> None:
    async def test(service: Pipeline) -> None:
        await until(lambda: service.models.fallback is not None and service.models.fallback.engine is not None)
        assert answered_by(await ask(service)).model == "cpu"

    workshop.broken["card"] = StartFailed("no device", permanent=True)
    await with_card(card_and_cpu(tmp_path), workshop, test)


async def test_a_fallback_that_is_not_installed_is_named_and_harms_nothing(tmp_path: Path, workshop: Workshop) -> None:
    async def test(service: Pipeline) -> None:
        assert "fallback_model" in service.models.trouble
        assert answered_by(await ask(service)).model == "card"

    settings = card_and_cpu(tmp_path).model_copy(update={"fallback_model": "nobody"})
    await with_card(settings, workshop, test)


async def test_a_required_accelerator_that_is_missing_is_told_to_every_request(
    tmp_path: Path, workshop: Workshop
) -> None:
    settings = settings_with_models(tmp_path, "one", model="auto", accelerator="required")
    async with pipeline(settings, workshop.loaders) as service:
        with pytest.raises(
            Unavailable, match=r"one: it runs on the CPU, and accelerator is required; there is no Axera"
        ):
            await ask(service)


async def test_with_a_required_accelerator_no_cpu_model_is_served_in_any_way(
    tmp_path: Path, workshop: Workshop
) -> None:
    (tmp_path / "own.gguf").touch()
    for chosen in ({"model": "cpu"}, {"model_path": tmp_path / "own.gguf"}):
        settings = card_and_cpu(tmp_path).model_copy(update={"accelerator": "required", **chosen})
        async with pipeline(settings, workshop.loaders, machine=CardMachine()) as service:
            with pytest.raises(Unavailable, match=r"it runs on the CPU, and accelerator is required"):
                await ask(service)
    settings = card_and_cpu(tmp_path).model_copy(update={"accelerator": "required"})
    async with pipeline(settings, workshop.loaders, machine=CardMachine()) as service:
        assert "accelerator is required" in service.models.trouble
        with pytest.raises(Unavailable, match=r"cpu cannot be served: it runs on the CPU"):
            await service.models.load("cpu")
        assert answered_by(await ask(service)).model == "card"


async def test_without_accelerator_the_first_model_of_the_cpu_is_chosen(tmp_path: Path, workshop: Workshop) -> None:
    settings = card_and_cpu(tmp_path).model_copy(update={"model": "auto", "accelerator": "none"})
    async with pipeline(settings, workshop.loaders, machine=CardMachine()) as service:
        assert answered_by(await ask(service)).model == "cpu"
        with pytest.raises(Unavailable, match=r"card cannot be served: it needs a card, and accelerator is none"):
            await service.models.load("card")


async def test_a_fallback_that_needs_the_card_is_none(tmp_path: Path, workshop: Workshop) -> None:
    settings = card_and_cpu(tmp_path).model_copy(update={"fallback_model": "card"})
    async with pipeline(settings, workshop.loaders, machine=CardMachine()) as service:
        assert service.models.trouble == "fallback_model: card needs the card, too. Name a model that runs on the CPU."
