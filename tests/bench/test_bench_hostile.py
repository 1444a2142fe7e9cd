"""bench.hostile_connections, with a few connections instead of hundreds."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.hostile_connections import Report
from tests import ROOT


async def run(small_gguf: Path, figures: Path, *arguments: str) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.hostile_connections",
        "--model-path",
        small_gguf,
        "--json",
        figures,
        *arguments,
        cwd=ROOT,
    )
    async with asyncio.timeout(110):
        assert await program.wait() == 0


def result_of(figures: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(figures.read_text())
    assert (result["admitted"], result["still_runs"], result["holds"]) == ([], True, True)
    return result


async def test_nobody_is_admitted_and_half_heads_are_closed(small_gguf: Path, tmp_path: Path) -> None:
    sizes = ("--connections", "96", "--half-heads", "30", "--head-timeout", "2")
    await run(small_gguf, tmp_path / "figures.json", *sizes)
    result = result_of(tmp_path / "figures.json")
    assert result["statuses"]["401"] > 40  # 7 of 10 are whole requests
    assert result["answered_408"] == 30


@pytest.mark.long
async def test_nobody_of_500_is_admitted(small_gguf: Path, tmp_path: Path) -> None:
    await run(small_gguf, tmp_path / "figures.json")
    assert result_of(tmp_path / "figures.json")["statuses"]["401"] > 200


def test_a_service_that_has_ended_or_answered_does_not_hold() -> None:
    health = [0.01]
    assert Report(still_runs=True, health_beside_half_heads=health).holds
    assert not Report(still_runs=False, health_beside_half_heads=health).holds
    assert not Report(still_runs=True, admitted=["1 x /admin/shutdown: 202"], health_beside_half_heads=health).holds
    assert not Report(still_runs=True, half_heads=2, answered_408=1, health_beside_half_heads=health).holds
