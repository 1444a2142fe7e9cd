"""A short storm, with what must hold after it. `python -m tests.chaos --seconds 3600` is the long one."""

import os
from pathlib import Path

from tests.chaos.folders import prepare
from tests.chaos.storm import storm

SECONDS = float(os.environ.get("QWEN_TEST_CHAOS_SECONDS", "0"))
TIMEOUT = 240 + 2 * SECONDS


async def every_request_ends_well_or_with_an_error_and_nothing_leaks(target: str, folder: Path) -> None:
    prepare(target, folder)
    figures = await storm(target, folder, SECONDS, seed=1)
    print(f"\n{target}\n{figures}")
    assert figures.before is not None
    assert figures.after is not None
    assert figures.after.files <= figures.before.files + 5
    assert figures.after.threads <= figures.before.threads + 3
    assert figures.after.rss <= figures.before.rss * 1.3 + 30e6
    assert len(figures.recoveries) >= 3
