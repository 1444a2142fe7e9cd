"""A ChildProcess whose start is cancelled, or fails, leaves no pipe and no process."""

import asyncio
import os
import sys

import pytest

from qwen_service.process.child import ChildProcess

pytestmark = [
    pytest.mark.both_loops,
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open pipes in /proc"),
]


def open_pipes() -> set[str]:
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return {os.readlink(link) for link in links if os.path.lexists(link) and os.readlink(link).startswith("pipe:")}


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("steps", range(12))
async def test_a_start_that_is_cancelled_leaves_nothing_open(steps: int) -> None:
    before = open_pipes()
    start = asyncio.create_task(ChildProcess.start([sys.executable, "-c", ""], name="child", stdin=True))
    for _ in range(steps):
        await asyncio.sleep(0)
    start.cancel()
    try:
        child = await start
    except asyncio.CancelledError:
        await settle()
    else:
        await child.stop()
    assert open_pipes() <= before


async def test_a_program_that_cannot_be_run_leaves_nothing_open() -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    before = open_pipes()
    with pytest.raises((OSError, ValueError)):
        await ChildProcess.start([sys.executable, "a\0b"], name="child", stdin=True)
    await settle()
    assert open_pipes() <= before
    assert errors == []
