"""Waiting for a state that nobody tells of."""

import asyncio
from collections.abc import Callable

PATIENCE = 60.0  # seconds; what is waited for takes milliseconds on a machine that has nothing else to do


async def until(condition: Callable[[], object]) -> None:
    """Return when it holds. TimeoutError when it never does."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 # the only place that looks again and again
            await asyncio.sleep(0.005)
