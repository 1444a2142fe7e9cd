"""Unloads a model that nobody uses; the next request loads it again.

A model is not unloaded while a request uses it or waits for it: both count as users from their arrival on.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

SOON = 1.0  # seconds between checks of a model that is still loading


class Rest:
    """The timer of one model. `unload` and `load` act on it; `is_loaded` tells whether there is anything to unload.

    `keep_for`: seconds that it stays loaded after the last use; None: for ever. A request may set another time.
    """

    def __init__(
        self,
        *,
        keep_for: float | None,
        is_allowed: bool,
        is_loaded: Callable[[], bool],
        unload: Callable[[], Coroutine[Any, Any, None]],
        load: Callable[[], None],
    ) -> None:
        self.is_allowed = is_allowed
        self.asleep = False
        self.users = 0
        self._default = self._keep_for = keep_for
        self._is_loaded, self._unload, self._load = is_loaded, unload, load
        self._timer: asyncio.TimerHandle | None = None
        self._unloading: asyncio.Task[None] | None = None
        self._last_used = time.monotonic()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        self.users += 1
        self._cancel_timer()
        try:
            yield
        finally:
            self.users -= 1
            self._last_used = time.monotonic()
            self.plan()

    def keep(self, seconds: float | None) -> None:
        """Set the time after the last use, in seconds; None: as configured; inf: for ever."""
        if self.is_allowed:
            self._keep_for = self._default if seconds is None else None if seconds == float("inf") else seconds
            self.plan()

    def plan(self) -> None:
        self._cancel_timer()
        if not self.users and not self.asleep and (left := self.seconds_left()) is not None:
            self._timer = asyncio.get_running_loop().call_later(left, self._fall_asleep)

    def seconds_left(self) -> float | None:
        """Seconds until the model is unloaded if nobody uses it; None: it stays."""
        if self._keep_for is None:
            return None
        return self._keep_for if self.users else max(0.0, self._keep_for - (time.monotonic() - self._last_used))

    async def unload_now(self) -> bool:
        """Unload the model now, or as soon as nobody uses it. Returns False if it may not be unloaded."""
        if not self.is_allowed:
            return False
        self.keep(0)
        self._fall_asleep()
        await self._unloaded()
        return True

    async def wake(self) -> None:
        """Load the model again, after a running unload has ended."""
        await self._unloaded()
        if self.asleep:
            self.asleep = False
            self._last_used = time.monotonic()
            self._load()
            self.plan()

    async def end(self) -> None:
        self._cancel_timer()
        await self._unloaded()

    def _fall_asleep(self) -> None:
        self._cancel_timer()
        if self.users or self.asleep:
            return
        if not self._is_loaded():
            self._timer = asyncio.get_running_loop().call_later(SOON, self._fall_asleep)
            return
        self.asleep = True
        self._unloading = asyncio.create_task(self._unload(), name="unload")

    async def _unloaded(self) -> None:
        if self._unloading is not None:
            await asyncio.wait({self._unloading})

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
