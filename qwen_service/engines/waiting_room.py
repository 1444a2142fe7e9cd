"""The waiting room: one bound and one time limit for everything that a request may have to wait for.

A request may wait for a switch of models, a load or a restart, and its turn. docs/operations.md draws it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qwen_service.errors import QueueFull


class Patience:
    """The time that one request may still wait. It starts at the request's arrival and is never renewed."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._ends - time.monotonic())


class WaitingRoom:
    def __init__(self, size: int, patience: float) -> None:
        """`size` requests may wait (queue_size), each for `patience` seconds in all (queue_timeout)."""
        self.size = size
        self._patience = patience
        self._for_a_model = 0
        self.in_line: Callable[[], int] = lambda: 0  # set by the scheduler: how many wait for their turn

    @property
    def waiting(self) -> int:
        return self._for_a_model + self.in_line()

    @property
    def places_in_line(self) -> int:
        """How many requests may wait for their turn beside those that wait for a model."""
        return max(0, self.size - self._for_a_model)

    def arrive(self) -> Patience:
        return Patience(self._patience)

    def full(self, retry_after: float) -> QueueFull:
        return QueueFull(f"The line is full (queue_size: {self.size}). Try again later.", retry_after=retry_after)

    @contextmanager
    def wait_for_model(self) -> Iterator[None]:
        """Hold a place while waiting for a model. Raises QueueFull when no place is free."""
        if self.waiting >= self.size:
            raise self.full(retry_after=5)
        self._for_a_model += 1
        try:
            yield
        finally:
            self._for_a_model -= 1
