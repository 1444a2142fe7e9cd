"""Ends a running request from outside, by its id: its client gets the error Cancelled, and its slot becomes free."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qwen_service.errors import Cancelled


@dataclass(eq=False, slots=True)
class _Generation:
    request_id: str
    task: asyncio.Task[object]
    cancelled: bool = False


class Cancellations:
    def __init__(self) -> None:
        self._running: list[_Generation] = []

    @property
    def request_ids(self) -> list[str]:
        return [generation.request_id for generation in self._running]

    @contextmanager
    def cancellable(self, request_id: str) -> Iterator[None]:
        """Make the work of the current task cancellable by the request's id. Works in generators, too."""
        task = asyncio.current_task()
        assert task is not None
        generation = _Generation(request_id, task)
        self._running.append(generation)
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            if generation.cancelled and task.uncancel() == 0:
                raise Cancelled("An administrator has cancelled this request.") from None
            raise
        finally:
            self._running.remove(generation)

    def cancel(self, request_id: str) -> int:
        """Cancel all running generations of this request. Returns their number."""
        found = [g for g in self._running if g.request_id == request_id and not g.cancelled]
        for generation in found:
            generation.cancelled = True
            generation.task.cancel()
        return len(found)
