"""bench.soak, for seconds instead of an hour."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.soak_figures import growth, percentiles
from tests import ROOT


@pytest.mark.parametrize("target", ["ax_repl", "ax_api"])
async def test_a_short_soak_finds_every_answer_right_and_nothing_left(
    target: str, tmp_path: Path, small_tokenizer_folder: Path
) -> None:
    figures = tmp_path / "soak.json"
    command = ["-m", "bench.soak", "--target", target, "--seconds", "4", "--every", "1", "--token-ms", "1"]
    program = await asyncio.create_subprocess_exec(
        sys.executable, *command, "--tokenizer", small_tokenizer_folder, "--json", figures, cwd=ROOT
    )
    async with asyncio.timeout(110):
        assert await program.wait() == 0
    result: dict[str, Any] = json.loads(figures.read_text())
    assert (result["faults"], result["complaints"], result["processes_left"]) == ([], [], [])
    assert result["outcomes"]["answered"] > 0
    assert max(sample["waiting"] for sample in result["samples"]) >= 14  # of 16: some are between two questions
    assert (result["samples"][-1]["running"], result["samples"][-1]["waiting"]) == (0, 0)


def test_growth_is_that_of_the_time_after_the_warm_up() -> None:
    memory = [100, 110, 120, 121, 122, 123, 124, 125, 126, 90]  # MB, each minute; the last one is at rest
    samples = [{"seconds": 60 * minute, "rss_mb": mb} for minute, mb in enumerate(memory)]
    assert growth(samples) == pytest.approx(60)


def test_percentiles_of_nothing_are_zero() -> None:
    assert percentiles("wait", []) == {"wait_p50": 0, "wait_p99": 0}
    assert percentiles("wait", [float(value) for value in range(101)]) == {"wait_p50": 50, "wait_p99": 99}
