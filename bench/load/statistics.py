"""Percentiles, and how sure a ratio is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median, quantiles

RESAMPLES = 2000


def percentile(values: Sequence[float], percent: int) -> float:
    """Linear between the closest ranks, as NumPy does by default. NaN of nothing."""
    if len(values) < 2:
        return values[0] if values else math.nan
    return quantiles(values, n=100, method="inclusive")[percent - 1]


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
    if not ratios:
        return Ratio(0, math.nan, math.nan, math.nan)
    medians = [median(random.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)]
    low, *_, high = quantiles(medians, n=40, method="inclusive")
    return Ratio(len(ratios), median(ratios), low, high)
