"""The plan and its execution: warm-up, then rounds in which the targets take turns."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random

import orjson

from bench.load.http_client import ExchangeFailed
from bench.load.measurement import Batch, Measurement, Surroundings
from bench.load.processes import ServerMemory
from bench.load.prompts import Scenario, Sizes, number_for
from bench.load.target import Target
from bench.load.wire import Question

LOOK_EVERY = 2.0  # seconds between looks at memory and card


@dataclass(frozen=True, slots=True)
class Plan:
    scenarios: Sequence[Scenario]
    clients: Sequence[int]
    rounds: int
    sizes: Sizes
    warm_up: bool = True
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    scenario: Scenario
    clients: int
    round: int
    target: Target


Progress = Callable[[str, int, int], None]  # what runs, steps done, steps in all


@dataclass(slots=True)
class Results:
    batches: list[Batch] = field(default_factory=list)
    surroundings: Surroundings = field(default_factory=Surroundings)
    interrupted: bool = False


def steps(plan: Plan, targets: Sequence[Target]) -> Iterator[Step]:
    """Every other round in the opposite order, so that whoever goes second is not always the same."""
    for clients in plan.clients:
        for number in range(plan.rounds):
            for scenario in plan.scenarios:
                for target in targets if number % 2 == 0 else list(reversed(targets)):
                    yield Step(scenario, clients, number, target)


async def run_plan(plan: Plan, targets: Sequence[Target], progress: Progress) -> Results:
    """Cancelled once something was measured, it returns what there is."""
    watch = Watch(targets)
    results = Results(surroundings=watch.seen)
    await watch.look()
    watcher = asyncio.create_task(watch.run())
    try:
        if plan.warm_up:
            plan = await _warm_up(plan, targets, progress)
        todo = list(steps(plan, targets))
        for done, step in enumerate(todo):
            progress(f"{step.target.name} · {step.scenario.name} · {step.clients} at once", done, len(todo))
            results.batches.append(await _batch(step, plan))
        progress("done", len(todo), len(todo))
    except asyncio.CancelledError:
        if not results.batches:
            raise
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        results.interrupted = True
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
    await watch.look()
    return results


async def _warm_up(plan: Plan, targets: Sequence[Target], progress: Progress) -> Plan:
    """Everything once, uncounted; tells how many tokens a word of the long prompt is."""
    per_word = [plan.sizes.per_word]
    for target in targets:
        for scenario in plan.scenarios:
            progress(f"warm-up · {target.name} · {scenario.name}", 0, 1)
            random = Random(f"{plan.seed} warm-up {scenario.name}")
            number = number_for(f"{plan.seed} warm-up {target.name} {scenario.name}")
            text = scenario.turns(number, random, plan.sizes)[0]
            answer, _, _ = await target.ask(Question([_user(text)], 8, scenario.json_schema))
            if scenario.name == "long" and answer.prompt_tokens:
                per_word.append(answer.prompt_tokens / len(text.split()))
    measured = per_word[1:] or per_word
    return replace(plan, sizes=replace(plan.sizes, per_word=max(measured)))


async def _batch(step: Step, plan: Plan) -> Batch:
    talks = [_talk(step, plan, client) for client in range(step.clients)]
    measurements = [m for talk in await asyncio.gather(*talks) for m in talk]
    return Batch(step.target.name, step.scenario.name, step.clients, step.round, tuple(measurements))


async def _talk(step: Step, plan: Plan, client: int) -> list[Measurement]:
    """One client once through the scenario; a failed turn ends it."""
    scenario = step.scenario
    seed = f"{plan.seed} {scenario.name} {step.clients} {step.round} {client}"
    turns = scenario.turns(number_for(f"{seed} {step.target.name}"), Random(seed), plan.sizes)
    messages: list[dict[str, str]] = []
    seen: list[Measurement] = []
    for turn, text in enumerate(turns):
        messages.append(_user(text))
        question = Question(tuple(messages), plan.sizes.answer, scenario.json_schema)
        measurement, reply = await _ask(step, turn, question)
        seen.append(measurement)
        if measurement.error:
            break
        messages.append({"role": "assistant", "content": reply})
    return seen


async def _ask(step: Step, turn: int, question: Question) -> tuple[Measurement, str]:
    answer, sent, ended = await step.target.ask(question)
    error = answer.error or ("" if answer.token_times else "an empty reply")
    if not error and question.json_schema is not None and answer.finish == "stop" and not _is_json(answer.text):
        error = "the answer is not JSON"
    measurement = Measurement(
        target=step.target.name,
        scenario=step.scenario.name,
        clients=step.clients,
        round=step.round,
        turn=turn,
        sent=sent,
        ended=ended,
        token_times=tuple(answer.token_times),
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        completion_tokens=answer.completion_tokens,
        queue=answer.queue,
        finish=answer.finish,
        error=error,
    )
    return measurement, answer.text


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


class Watch:
    """Looks at the servers' memory and cards while they work."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.seen = Surroundings()
        self._targets = targets
        self._memories = {target.name: ServerMemory(target.client.host, target.client.port) for target in targets}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self.look()

    async def look(self) -> None:
        for target in self._targets:
            name = target.name
            rss = await asyncio.to_thread(self._memories[name].resident)
            if rss is not None:
                self.seen.peak_rss[name] = max(rss, self.seen.peak_rss.get(name, 0))
            heat = await _temperature(target)
            if heat is not None:
                self.seen.peak_temperature[name] = max(heat, self.seen.peak_temperature.get(name, heat))


async def _temperature(target: Target) -> float | None:
    """Of the hottest card, where the server's /health tells."""
    try:
        reply = await target.client.get("/health")
        cards = orjson.loads(reply.body)["details"]["npu"]["cards"]
        return max((float(card["temperature_celsius"]) for card in cards), default=None)
    except (ExchangeFailed, orjson.JSONDecodeError, KeyError, TypeError):
        return None
