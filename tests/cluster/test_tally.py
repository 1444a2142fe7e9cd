"""What a replica tells of its own work."""

from collections.abc import AsyncGenerator

import pytest

from qwen_service.chat import ChatRequest, Sampling
from qwen_service.cluster.ranking import NEVER
from qwen_service.cluster.tally import Tally
from qwen_service.cluster.wire import Work
from qwen_service.engine import Engine, ModelText
from qwen_service.models.spec import ModelSpec
from qwen_service.runtime import HeldIds, Limits, Piece, Prefill, Prompt
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import ChatTemplate
from tests.fakes import LetterTokenizer, ScriptedRuntime

SPEC = ModelSpec("m", "ax_api", (), prefill_rate=50.0, decode_rate=4.0)


class Exact(ScriptedRuntime):
    """It can tell what it holds."""

    def held_ids(self) -> list[HeldIds]:
        return [HeldIds((1, 2, 3, 4))]


async def unplayed(prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
    yield Piece(finish_reason="stop")


def engine(runtime: ScriptedRuntime, slots: int = 1) -> Engine:
    text = ModelText(LetterTokenizer(), ChatTemplate("", {}), OutputFormat())
    return Engine(runtime, Limits(2559, 2048, slots), text)


def work(key: str, *ids: int) -> Work:
    return Work(key, Prompt(ids, ChatRequest(key)), Sampling())


def test_before_any_work_the_manifest_tells_the_pace() -> None:
    tally = Tally(SPEC)
    assert (tally.per_id, tally.tokens_per_second, tally.idle, tally.running) == (0.02, 4.0, NEVER, 0)


def test_work_is_measured_and_named_until_later_than_its_end() -> None:
    tally = Tally(SPEC)
    with tally.of(work("a", 1, 2, 3), 1) as entry:
        assert (tally.running, tally.idle) == (1, 0.0)
        entry.add(Prefill(3, 1))
        entry.started -= 4.0
        entry.add(Piece("x", 1, (9,)))
        entry.add(Piece("y", 2, (8, 7), finish_reason="stop"))
    assert tally.per_id == pytest.approx(0.02 + 0.3 * (2.0 - 0.02), rel=0.01)  # four seconds for two ids
    assert (tally.running, list(tally.seen)) == (0, ["a"])
    assert 0 <= tally.idle < 60


async def test_what_is_worked_on_counts_as_held() -> None:
    tally, exact = Tally(SPEC), engine(Exact(unplayed))
    assert [cache.length for cache in tally.held(exact)] == [4]
    with tally.of(work("a", *range(200)), 1):
        assert [(cache.length, cache.partly) for cache in tally.held(exact)] == [(200, True)]


async def test_a_runtime_that_cannot_tell_is_taken_to_hold_its_last_talks() -> None:
    tally, vague = Tally(SPEC), engine(ScriptedRuntime(unplayed), slots=2)
    for key in ("a", "b", "c"):
        with tally.of(work(key, 1, 2, 3), 2) as entry:
            entry.add(Piece("x", 1, (9,)))
    assert [cache.length for cache in tally.held(vague)] == [4, 4]
