"""All that a bench found, in one value; and the same as JSON."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import orjson

from bench.load.measurement import Batch, Surroundings
from bench.load.requirements import Verdict
from bench.load.runner import Plan
from bench.load.summary import Comparison, Row
from bench.load.target import Target


@dataclass(frozen=True, slots=True)
class Report:
    begun: datetime
    seconds: float
    plan: Plan
    targets: Sequence[Target]
    batches: Sequence[Batch]
    rows: Sequence[Row]
    comparisons: Sequence[Comparison]
    surroundings: Surroundings
    verdicts: Sequence[Verdict]
    interrupted: bool = False

    @property
    def machine(self) -> str:
        return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"

    @property
    def failures(self) -> Mapping[str, int]:
        """Error texts of each target and how often each came."""
        counts: dict[str, int] = {}
        for batch in self.batches:
            for measurement in batch.measurements:
                if measurement.error:
                    text = f"{batch.target}: {measurement.error}"
                    counts[text] = counts.get(text, 0) + 1
        return counts


def as_json(report: Report) -> bytes:
    """Figures first, then every request. Durations in seconds, memory in bytes, what is unknown null."""
    plan = report.plan
    content: dict[str, Any] = {
        "begun": report.begun,
        "seconds": report.seconds,
        "interrupted": report.interrupted,
        "machine": report.machine,
        "plan": {
            "prompts": [scenario.name for scenario in plan.scenarios],
            "clients": list(plan.clients),
            "rounds": plan.rounds,
            "answer_tokens": plan.sizes.answer,
            "long_prompt_tokens": plan.sizes.long_prompt,
            "seed": plan.seed,
        },
        "targets": [
            {"name": t.name, "url": t.url, "api": t.wire.name, "model": t.model, "context": t.context}
            for t in report.targets
        ],
        "requirements": [asdict(verdict) for verdict in report.verdicts],
        "rows": [asdict(row) for row in report.rows],
        "comparisons": [asdict(comparison) for comparison in report.comparisons],
        "surroundings": asdict(report.surroundings),
        "failures": report.failures,
        "batches": [{**asdict(batch), "throughput": batch.throughput} for batch in report.batches],
    }
    return orjson.dumps(_finite(content), option=orjson.OPT_INDENT_2)


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
