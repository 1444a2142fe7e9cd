import argparse
from itertools import pairwise
from pathlib import Path

import pytest

from bench.first_word import SCENARIOS, Bench, line
from bench.soak_service import ROOT


@pytest.mark.timeout(180)
async def test_a_reply_that_was_cut_is_continued_and_the_line_tells_the_worst(small_tokenizer_folder: Path) -> None:
    chosen = argparse.Namespace(
        tokenizer=small_tokenizer_folder, pause=0.05, step_ms=5, token_ms=1, service=ROOT, log=None
    )
    bench = Bench(chosen)
    (scenario,) = [scenario for scenario in SCENARIOS if scenario.name == "cut"]
    firsts = await bench.run(scenario)
    assert len(firsts) == 5
    for before, first in pairwise(firsts):
        assert first.cached >= before.prompt + 49
    assert bench.limit(scenario, firsts) == pytest.approx(0.007)
    assert line(scenario, firsts, bench.limit(scenario, firsts)).startswith("| replies cut by max_tokens 50 |")
