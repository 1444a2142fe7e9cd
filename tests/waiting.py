"""until() waits for a state by looking again and again; slow_loop() makes the event loop slow."""

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
    """Block the event loop for 30 ms in each of its turns, as a busy machine does. Events then arrive together, not one by one."""
    loop = asyncio.get_running_loop()
    blocking: asyncio.Handle

    def block() -> None:
        nonlocal blocking
        time.sleep(0.03)
        blocking = loop.call_soon(block)

    blocking = loop.call_soon(block)
    try:
        yield
    finally:
        blocking.cancel()
