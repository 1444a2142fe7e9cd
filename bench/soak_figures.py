"""What a soak has measured: samples, the table of them, and what grows."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

COLUMNS = ("seconds", "rss_mb", "files", "threads", "children", "running", "waiting", "answered", "refused", "left",
           "wait_p50", "wait_p99", "ttft_p50", "ttft_p99", "status")  # fmt: skip
WARM_UP = 0.25  # of the time: caches fill


@dataclass(frozen=True)
class Sample:
    seconds: float
    rss_mb: float
    files: float  # open handles
    threads: float
    children: int
    state_files: int  # in the state folder: sockets, PID files
    running: int
    waiting: int
    answered: int
    refused: int
    left: int
    faults: int
    restarts: int
    status: str
    wait_p50: float  # seconds, of the replies since the sample before, as the service logged them; so are the next
    wait_p99: float
    ttft_p50: float
    ttft_p99: float


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [0.0] * 99
    return {f"{name}_p50": cuts[49], f"{name}_p99": cuts[98]}


def row(sample: Sample) -> str:
    values = asdict(sample)
    return " ".join(f"{v:9.2f}" if isinstance(v := values[name], float) else f"{v:>9}" for name in COLUMNS)


def growth(samples: Sequence[Mapping[str, Any]]) -> float:
    """MB per hour of the line through the samples after the warm-up; the last one is taken at rest and left out."""
    end = samples[-1]["seconds"]
    settled = [sample for sample in samples[:-1] if sample["seconds"] >= WARM_UP * end]
    seconds, memory = ([sample[name] for sample in settled] for name in ("seconds", "rss_mb"))
    return statistics.linear_regression(seconds, memory).slope * 3600


def summary(result: Mapping[str, Any]) -> str:
    samples = result["samples"]
    first, last = samples[0], samples[-1]
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result["outcomes"].items()))
    return "\n".join(
        (
            f"requests  {outcomes}",
            f"memory    {first['rss_mb']:.1f} -> {last['rss_mb']:.1f} MB, after the warm-up {growth(samples):+.2f} MB/h",
            f"restarts  {last['restarts']}, exit {result['exit']}, processes left {result['processes_left']}",
            *(f"FAULT     {fault}" for fault in result["faults"]),
            *(f"COMPLAINT {line['message']}" for line in result["complaints"]),
        )
    )
