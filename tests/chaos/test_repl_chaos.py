"""A storm over the REPL program: a file of its own, so that it can run beside the storm over llama.cpp."""

from pathlib import Path

import pytest

from tests.chaos.short_storm import TIMEOUT, every_request_ends_well_or_with_an_error_and_nothing_leaks


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
async def test_a_storm_over_the_repl_program(tmp_path: Path) -> None:
    await every_request_ends_well_or_with_an_error_and_nothing_leaks("ax_repl", tmp_path)
