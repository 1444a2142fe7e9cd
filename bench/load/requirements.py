"""`--require 'ttft_p95<2s'`: conditions that decide the exit status, and named sets of them.

    [SCENARIO.]METRIC[_p50|_p95|_p99][@CLIENTS] < or > VALUE[UNIT]

Without a scenario or clients, all requests to the first target count together.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.load.errors import BenchError
from bench.load.measurement import Batch
from bench.load.prompts import SCENARIOS
from bench.load.statistics import percentile
from bench.load.summary import METRICS, row

PATTERN = re.compile(
    r"(?:(?P<scenario>[a-z]+)\.)?(?P<metric>[a-z0-9]+?)(?:_(?P<percent>p50|p95|p99))?(?:@(?P<clients>\d+))?"
    r"\s*(?P<sign><=|>=|<|>)\s*(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|MB|GB|)"
)
UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "MB": 1e6, "GB": 1e9}
WHOLE = ("throughput", "errors", "memory")  # have no percentiles


@dataclass(frozen=True, slots=True)
class Requirement:
    text: str
    metric: str
    percent: str
    sign: str
    bound: float
    scenario: str | None = None
    clients: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    requirement: str
    value: float  # NaN: there was nothing to measure
    met: bool


@dataclass(frozen=True, slots=True)
class Profile:
    what: str
    options: Mapping[str, object]
    requirements: Sequence[str]


# 512 tokens within 6 s at the median is the target of the plan for Qwen3-4B; docs/performance.md tells what the
# card's memory bandwidth allows.
PROFILES: Mapping[str, Profile] = {
    "qwen3-4b-plan": Profile(
        "the plan's target for Qwen3-4B: 512 tokens within 6 s at the median",
        {"prompts": "essay", "tokens": 512, "clients": "1"},
        ("e2e_p50<6s", "tokens_p50>=512", "errors<1"),
    )
}


def parse_requirement(text: str) -> Requirement:
    """Raises BenchError."""
    found = PATTERN.fullmatch(text.strip())
    if found is None:
        raise BenchError(f"--require {text!r} is not understood; examples: ttft_p95<2s, short.tps_p50@4>10, errors<1")
    metric, scenario = found["metric"], found["scenario"]
    if metric not in METRICS and metric not in WHOLE:
        raise BenchError(f"--require {text!r}: no metric {metric!r}; there are {', '.join([*METRICS, *WHOLE])}")
    if scenario is not None and scenario not in SCENARIOS:
        raise BenchError(f"--require {text!r}: no prompts {scenario!r}; there are {', '.join(SCENARIOS)}")
    clients = int(found["clients"]) if found["clients"] else None
    bound = float(found["value"]) * UNITS[found["unit"]]
    return Requirement(text, metric, found["percent"] or "p50", found["sign"], bound, scenario, clients)


def judge(requirement: Requirement, batches: Sequence[Batch], peak_rss: int | None) -> Verdict:
    """`batches` are those of the target that must meet it. What was not measured is not met."""
    chosen = [
        batch
        for batch in batches
        if requirement.scenario in (None, batch.scenario) and requirement.clients in (None, batch.clients)
    ]
    value = _value(requirement, chosen, peak_rss)
    return Verdict(requirement.text, value, not math.isnan(value) and _holds(requirement, value))


def _value(requirement: Requirement, batches: Sequence[Batch], peak_rss: int | None) -> float:
    if requirement.metric == "memory":
        return math.nan if peak_rss is None else float(peak_rss)
    if not batches:
        return math.nan
    if requirement.metric == "throughput":
        return percentile([batch.throughput for batch in batches if batch.throughput is not None], 50)
    together = row(batches, "all")
    if requirement.metric == "errors":
        return float(together.errors)
    return float(getattr(together.spreads[requirement.metric], requirement.percent))


def _holds(requirement: Requirement, value: float) -> bool:
    match requirement.sign:
        case "<":
            return value < requirement.bound
        case "<=":
            return value <= requirement.bound
        case ">":
            return value > requirement.bound
        case _:
            return value >= requirement.bound
