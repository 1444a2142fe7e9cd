"""Percentiles, and how sure a ratio is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

RESAMPLES = 2000


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the closest ranks, as NumPy does by default. NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one metric. For a speed, p95 is what 95 % of the requests reach: the slow end, as for times."""

    count: int
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float], *, more_is_better: bool = False) -> "Spread":
        tail = (5, 1) if more_is_better else (95, 99)
        return cls(len(values), percentile(values, 50), *(percentile(values, percent) for percent in tail))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of paired rounds: the median, and the range that holds it with 95 % confidence (bootstrap of the rounds)."""

    count: int
    median: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """The difference is more than the rounds' own spread."""
        return self.count > 2 and (self.low > 1 or self.high < 1)


def ratio_of(ratios: Sequence[float]) -> Ratio:
    random = Random(0)
    medians = [percentile(random.choices(ratios, k=len(ratios)), 50) for _ in range(RESAMPLES)] if ratios else []
    return Ratio(len(ratios), percentile(ratios, 50), percentile(medians, 2.5), percentile(medians, 97.5))
