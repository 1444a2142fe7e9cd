"""From measurements to figures: percentiles, ratios, requirements, the plan's order."""

import math
import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.errors import BenchError
from bench.load.figures import number, seconds, spread_lines
from bench.load.http_client import HttpClient
from bench.load.measurement import Batch, Measurement
from bench.load.prompts import SCENARIOS, Sizes, number_for
from bench.load.requirements import judge, parse_requirement
from bench.load.runner import Plan, steps
from bench.load.statistics import Spread, percentile, ratio_of
from bench.load.summary import comparisons, rows
from bench.load.target import Target
from bench.load.wire import OpenAIWire


def measurement(target: str = "this", *, number: int = 0, ttft: float = 0.1, error: str = "") -> Measurement:
    return Measurement(
        target=target, scenario="short", clients=1, round=number, turn=0, sent=10.0, ended=10.0 + ttft + 0.3,
        token_times=(10 + ttft, 10.1 + ttft, 10.2 + ttft, 10.3 + ttft), completion_tokens=4, error=error,
    )  # fmt: skip


def batch(target: str, number: int, ttft: float, error: str = "") -> Batch:
    return Batch(target, "short", 1, number, (measurement(target, number=number, ttft=ttft, error=error),))


def test_percentiles_lie_between_the_closest_ranks() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([float(i) for i in range(101)], 95) == 95.0
    assert percentile([7.0], 99) == 7.0
    assert math.isnan(percentile([], 50))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(1, 99))
def test_a_percentile_is_never_outside_the_values(values: list[float], percent: int) -> None:
    assert min(values) - 1e-6 <= percentile(values, percent) <= max(values) + 1e-6


def test_the_tail_of_a_speed_is_its_slow_end() -> None:
    speeds = [float(i) for i in range(1, 101)]
    assert Spread.of(speeds, more_is_better=True).p95 < 10 < 90 < Spread.of(speeds).p95


def test_a_measurement_counts_tokens_as_the_server_does() -> None:
    seen = measurement(ttft=0.5)
    assert seen.ttft == pytest.approx(0.5)
    assert seen.gaps == pytest.approx([0.1, 0.1, 0.1])
    assert seen.tokens_per_second == pytest.approx(10)
    assert seen.e2e == pytest.approx(0.8)


def test_failed_requests_are_counted_but_never_timed() -> None:
    (row,) = rows([batch("this", 0, 0.1), batch("this", 1, 99.0, error="broken")])
    assert (row.requests, row.errors) == (2, 1)
    assert row.spreads["ttft"].p99 == pytest.approx(0.1)


def test_a_difference_is_certain_only_beyond_the_rounds_own_spread() -> None:
    assert ratio_of([0.50, 0.51, 0.49, 0.50, 0.52]).certain
    assert not ratio_of([0.8, 1.3, 0.9, 1.2, 1.0]).certain
    assert not ratio_of([0.5, 0.5]).certain


def test_only_rounds_that_both_finished_are_compared() -> None:
    batches = [batch("this", 0, 0.1), batch("other", 0, 0.2), batch("this", 1, 0.1), batch("other", 1, 0.2, error="x")]
    (comparison,) = comparisons(batches, base="other", other="this")
    assert comparison.ratios["ttft"].count == 1
    assert comparison.ratios["ttft"].median == pytest.approx(0.5)


@pytest.mark.parametrize(("text", "met"), [
    ("ttft_p95<2s", True), ("ttft_p95<100ms", False), ("ttft<=1s", True), ("short.ttft@1<1s", True), ("errors<1", True),
    ("tps_p50>9", True), ("tps_p50>=11", False), ("throughput>4", True), ("memory<1GB", True), ("memory<1MB", False),
    ("talk.ttft<1s", False), ("ttft@8<1s", False), ("queue_p99<1s", False),
])  # fmt: skip
def test_requirements_are_judged_and_what_was_not_measured_is_not_met(text: str, met: bool) -> None:
    batches = [batch("this", number, 0.5) for number in range(3)]
    assert judge(parse_requirement(text), batches, peak_rss=100_000_000).met is met


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft_p95", "ttft_p90<1s", "ttft<1h", "poem.ttft<1s", "nothing<1", "ttft<-1s"]
)
def test_a_requirement_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(BenchError):
        parse_requirement(text)


async def test_targets_take_turns_and_neither_is_always_first() -> None:
    client = HttpClient("http://localhost:1", {}, timeout=1)
    targets = [Target(name, "", client, OpenAIWire(), "m", 2048) for name in ("this", "other")]
    plan = Plan([SCENARIOS["short"]], [1], 4, Sizes(64, 1000))
    order = [step.target.name for step in steps(plan, targets)]
    assert order == ["this", "other", "other", "this", "this", "other", "other", "this"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_prompts_are_the_same_for_one_seed_and_new_for_another(name: str) -> None:
    sizes = Sizes(64, 1000)
    turns = SCENARIOS[name].turns
    assert turns(1, Random("a"), sizes) == turns(1, Random("a"), sizes)
    assert turns(1, Random("a"), sizes)[0] != turns(2, Random("b"), sizes)[0]


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_targets_are_asked_the_same_but_for_a_number_at_the_beginning(name: str) -> None:
    """Else the second one would find what it is asked in a cache that the two share."""
    this, other = (SCENARIOS[name].turns(number_for(f"s {who}"), Random("s"), Sizes(64, 500)) for who in "ab")
    assert re.sub(r"\d{6}", "N", this[0]) == re.sub(r"\d{6}", "N", other[0])
    assert this[0].split()[:5] != other[0].split()[:5]


def test_the_long_prompt_has_the_length_that_was_asked_for() -> None:
    (text,) = SCENARIOS["long"].turns(1, Random(1), Sizes(64, 1000, per_word=1.25))
    assert len(text.split()) * 1.25 == pytest.approx(1000, rel=0.05)


def test_figures_are_written_as_people_read_them() -> None:
    assert [seconds(value) for value in (0.00123, 0.5, 2.345, 123.4)] == ["1.23 ms", "500 ms", "2.35 s", "123 s"]
    assert [number(value) for value in (1.234, 45.67, 99.97, 1234.5)] == ["1.23", "45.7", "100", "1234"]
    assert spread_lines(0.493, (0.589, 0.594), "s") == ("493 ms", "589/594")
    assert spread_lines(0.493, (0.589, 1.594), "s") == ("0.49 s", "0.59/1.59")
