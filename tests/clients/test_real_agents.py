"""The real coding agents with a real Qwen: QWEN_TEST_GGUF names a GGUF with Qwen's chat template."""

import re
from pathlib import Path

import httpx
import pytest

from tests.clients.coding_agents import CODERS, Coder, demand, launched
from tests.clients.test_real_qwen import url

__all__ = ["url"]  # a fixture

pytestmark = [pytest.mark.agents, pytest.mark.qwen_gguf, pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = [coder for coder in CODERS if coder.name != "opencode"]  # whose prompt is read within a minute
PATIENCE = 400.0  # seconds: ten times what a prompt takes on two cores


def tokens(url: str, kind: str) -> int:
    """Of all prompts so far."""
    found = re.search(rf"^qwen_{kind}_total{{.*}} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return int(float(found[1])) if found else 0


@pytest.mark.parametrize("coder", SMALL, ids=[coder.name for coder in SMALL])
def test_the_second_turn_is_cached_but_for_what_is_new(coder: Coder, url: str, tmp_path: Path) -> None:
    demand(coder)
    before = tokens(url, "prompt_tokens")
    assert launched(coder, url, tmp_path, "Say hello in one short sentence.", patience=PATIENCE)
    first, cached = tokens(url, "prompt_tokens") - before, tokens(url, "cached_prompt_tokens")
    assert launched(coder, url, tmp_path, "And now say goodbye.", resume=True, patience=PATIENCE)
    assert tokens(url, "cached_prompt_tokens") - cached >= first
