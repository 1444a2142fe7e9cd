"""Batches -> figures per target, scenario and number of clients; and the ratios of paired targets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.load.measurement import Batch, Measurement
from bench.load.statistics import Ratio, Spread, percentile, ratio_of


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    label: str
    unit: str  # "s" or "/s", or empty for counts
    values: Callable[[Measurement], Iterable[float | None]]
    more_is_better: bool = False


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("ttft", "time to first token", "s", lambda m: (m.ttft,)),
        Metric("gap", "time between tokens", "s", lambda m: m.gaps),
        Metric("tps", "tokens per second", "/s", lambda m: (m.tokens_per_second,), more_is_better=True),
        Metric("e2e", "end to end", "s", lambda m: (m.e2e,)),
        Metric("queue", "queue wait", "s", lambda m: (m.queue,)),
        Metric("tokens", "tokens of the reply", "", lambda m: (m.tokens,), more_is_better=True),
    )
}
COMPARED = ("ttft", "gap", "tps", "e2e")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `scenario` may be "all"."""

    target: str
    scenario: str
    clients: int
    requests: int
    errors: int
    spreads: Mapping[str, Spread]
    throughput: float  # tokens/s of all clients together, median of the rounds; NaN when unknown
    prompt_tokens: float  # medians; NaN where the server does not count
    cached_tokens: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """`other` over `base`, paired by round."""

    base: str
    other: str
    scenario: str
    clients: int
    ratios: Mapping[str, Ratio]


def values_of(name: str, measurements: Iterable[Measurement]) -> list[float]:
    metric = METRICS[name]
    return [value for m in measurements if not m.error for value in metric.values(m) if value is not None]


def rows(batches: Sequence[Batch]) -> list[Row]:
    groups: dict[tuple[str, str, int], list[Batch]] = {}
    for batch in batches:
        groups.setdefault((batch.scenario, batch.target, batch.clients), []).append(batch)
    return [row(members, scenario) for (scenario, _, _), members in groups.items()]


def row(batches: Sequence[Batch], scenario: str) -> Row:
    measurements = [m for batch in batches for m in batch.measurements]
    good = [m for m in measurements if not m.error]
    spreads = {
        name: Spread.of(values_of(name, good), more_is_better=metric.more_is_better) for name, metric in METRICS.items()
    }
    return Row(
        target=batches[0].target,
        scenario=scenario,
        clients=batches[0].clients,
        requests=len(measurements),
        errors=len(measurements) - len(good),
        spreads=spreads,
        throughput=percentile([b.throughput for b in batches if b.throughput is not None], 50),
        prompt_tokens=percentile([m.prompt_tokens for m in good if m.prompt_tokens is not None], 50),
        cached_tokens=percentile([m.cached_tokens for m in good if m.cached_tokens is not None], 50),
    )


def comparisons(batches: Sequence[Batch], base: str, other: str) -> list[Comparison]:
    """Paired rounds only: a round in which one of the two has no figure counts for nothing."""
    pairs: dict[tuple[str, int], dict[int, dict[str, Batch]]] = {}
    for batch in batches:
        rounds = pairs.setdefault((batch.scenario, batch.clients), {})
        rounds.setdefault(batch.round, {})[batch.target] = batch
    return [
        Comparison(base, other, scenario, clients, {name: _ratio(name, rounds, base, other) for name in _compared()})
        for (scenario, clients), rounds in pairs.items()
    ]


def _compared() -> tuple[str, ...]:
    return (*COMPARED, "throughput")


def _ratio(name: str, rounds: Mapping[int, Mapping[str, Batch]], base: str, other: str) -> Ratio:
    pairs = [(_figure(name, pair.get(base)), _figure(name, pair.get(other))) for pair in rounds.values()]
    return ratio_of([of_other / of_base for of_base, of_other in pairs if of_base and of_other])


def _figure(name: str, batch: Batch | None) -> float | None:
    if batch is None or not batch.good:
        return None
    if name == "throughput":
        return batch.throughput
    values = values_of(name, batch.good)
    return percentile(values, 50) if values else None
