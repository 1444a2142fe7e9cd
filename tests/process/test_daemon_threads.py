import asyncio
import subprocess
import sys
import threading
from concurrent.futures import wait

import pytest

from qwen_service.process.daemon_threads import DaemonThreads, in_daemon_thread

HANGS = """
import asyncio, threading
from qwen_service.process.daemon_threads import in_daemon_thread

async def main():
    task = asyncio.create_task(in_daemon_thread(threading.Event().wait))
    await asyncio.sleep(0.1)
    task.cancel()

asyncio.run(main())
print("ended")
"""


def test_results_and_errors_come_back_from_at_most_so_many_threads() -> None:
    threads = DaemonThreads(2)
    names: set[str] = set()

    def square(number: int) -> int:
        names.add(str(threading.get_ident()))
        return number * number

    futures = [threads.submit(square, number) for number in range(20)]
    failing = threads.submit(int, "x")
    threads.close()
    assert [future.result(10) for future in futures] == [number * number for number in range(20)]
    assert isinstance(failing.exception(10), ValueError)
    assert len(names) <= 2


def test_calls_that_have_not_begun_can_be_dropped() -> None:
    threads, go = DaemonThreads(1), threading.Event()
    first = threads.submit(go.wait, 10)
    second = threads.submit(go.wait, 10)
    while not first.running():
        pass
    threads.close(cancel=True)
    go.set()
    wait([first], 10)
    assert first.result() is True
    assert second.cancelled()


async def test_a_coroutine_gets_the_result_or_the_error() -> None:
    assert await in_daemon_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(divmod, 7, 0)


async def test_who_is_cancelled_does_not_wait_for_the_thread() -> None:
    go = threading.Event()
    task = asyncio.create_task(in_daemon_thread(go.wait, 10))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()


def test_a_thread_that_hangs_does_not_keep_the_program_from_ending() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "ended\n"
