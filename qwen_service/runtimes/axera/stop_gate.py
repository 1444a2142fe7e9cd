"""Holds back our answer to one /decode, so that the program can be stopped between two steps.

The program waits for the answer before it computes the next step, and checks its stop flag before that step. Held,
stopped and then answered, it computes nothing more, and the content of its KV cache is known id for id. A stop at another
moment can fall between two layers of a step: then the last entry of the KV cache is wrong.
"""

import asyncio
import threading
from contextlib import suppress
from typing import Literal

from qwen_service.runtimes.axera.reply_tokens import BATCH


class StopGate:
    """The gate. The main loop arms and releases it; holds() and until_released() are called in the tokenizer's thread.

    It holds only one answer in its life, to a full batch: a shorter batch ends the reply anyway.
    """

    def __init__(self, longest: float) -> None:
        """`longest`: seconds for which an answer may be held; the program's client waits a little longer."""
        self._longest = longest
        self._lock = threading.Lock()
        self._after: int | None = None
        self._at_next = False
        self._state: Literal["open", "held", "released", "expired"] = "open"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free: asyncio.Event
        self._decoded = 0
        self._held: int | None = None

    def stop_after(self, count: int) -> None:
        """Hold the answer to the batch that completes `count` ids of the reply."""
        self._after = count

    def stop_at_next(self) -> None:
        self._at_next = True

    @property
    def held(self) -> int | None:
        """The number of ids decoded when an answer was held, including its batch; None: no answer was held."""
        return self._held

    def holds(self, size: int) -> bool:
        """Note a batch of `size` ids. Returns True when its answer must wait for until_released()."""
        with self._lock:
            if self._state != "open":
                return False
            self._decoded += size
            due = self._at_next or (self._after is not None and self._decoded >= self._after)
            if not due or size != BATCH:
                return False
            self._state, self._held = "held", self._decoded
            self._loop, self._free = asyncio.get_running_loop(), asyncio.Event()
            return True

    async def until_released(self) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._longest):
                    await self._free.wait()
        finally:
            self._expire()

    def release(self) -> bool:
        """Release the answer. Returns True when it was held until now, so that no step was computed meanwhile."""
        with self._lock:
            if self._state != "held":
                return False
            self._state = "released"
        assert self._loop is not None
        with suppress(RuntimeError):  # the tokenizer's loop has ended, and its connections with it
            self._loop.call_soon_threadsafe(self._free.set)
        return True

    def _expire(self) -> None:
        with self._lock:
            if self._state == "held":
                self._state = "expired"
