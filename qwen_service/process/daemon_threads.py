"""Threads that do not delay the end of the process: for work that can hang on a network and may be abandoned.

asyncio.to_thread and ThreadPoolExecutor would keep the interpreter from ending until their threads are done.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class DaemonThreads:
    """At most `workers` calls at once, each in a daemon thread. close() never waits."""

    def __init__(self, workers: int, name: str = "worker") -> None:
        self._workers, self._name = workers, name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads: list[Thread] = []

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        future: Future[R] = Future()
        self._calls.put((future, partial(function, *args, **kwargs)))
        if len(self._threads) < self._workers:
            thread = Thread(target=self._work, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self, *, cancel: bool = False) -> None:
        """Take no more calls. `cancel` drops the calls that have not begun."""
        while cancel and not self._calls.empty():
            if (call := self._calls.get()) is not None:
                call[0].cancel()
        for _ in self._threads:
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as error:  # raised again where the result is awaited
                future.set_exception(error)
            else:
                future.set_result(result)


async def in_daemon_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run the call in a daemon thread. When the caller is cancelled, the thread goes on without it."""
    threads = DaemonThreads(1, getattr(function, "__name__", "worker"))
    future = threads.submit(function, *args, **kwargs)
    threads.close()
    return await asyncio.wrap_future(future)
