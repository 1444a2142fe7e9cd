"""A storm over llama.cpp; with `-m long` also over main_api and axllm."""

from pathlib import Path

import pytest

from tests.chaos.short_storm import TIMEOUT, every_request_ends_well_or_with_an_error_and_nothing_leaks


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize(
    "target", ["llamacpp", *(pytest.param(name, marks=pytest.mark.long) for name in ("ax_api", "axllm"))]
)
async def test_a_storm_over_an_engine(target: str, tmp_path: Path) -> None:
    await every_request_ends_well_or_with_an_error_and_nothing_leaks(target, tmp_path)
