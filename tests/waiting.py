"""Waiting for a state that nobody tells of, and an event loop on which everybody waits."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

PATIENCE = 60.0  # seconds; what is waited for takes milliseconds on a machine that has nothing else to do


async def until(condition: Callable[[], object]) -> None:
    """Return when it holds. TimeoutError when it never does."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 # the only place that looks again and again
            await asyncio.sleep(0.005)


@asynccontextmanager
async def slow_loop() -> AsyncGenerator[None, None]:
    """Hold the event loop up, as on a busy machine: what otherwise comes one after the other arrives in one turn of it."""

    async def hold_up() -> None:
        while True:
            time.sleep(0.03)  # noqa: ASYNC251 # on purpose
            await asyncio.sleep(0)

    holding_up = asyncio.create_task(hold_up())
    try:
        yield
    finally:
        holding_up.cancel()
        await asyncio.wait({holding_up})
