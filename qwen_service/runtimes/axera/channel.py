"""The token channel: carries the events of one generation from the tokenizer's thread to the main loop.

The program knows a channel by its key, a short ASCII word that is sent in place of a prompt or a system prompt.
The program passes the key to the tokenizer server, gets the ids of the channel, and from then on
every id that it generates arrives here.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from qwen_service.runtimes.axera.stop_gate import StopGate


@dataclass(frozen=True, slots=True)
class Encoded:
    """The program has fetched the prompt: the generation runs."""


@dataclass(frozen=True, slots=True)
class ResetCalled:
    """The program has fetched the ids of its new system prompt."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One call of /decode: a batch, or the whole reply (reply_tokens.py tells them apart).

    `held`: the channel's gate holds the answer back. Stop the program now, then release the gate.
    """

    token_ids: tuple[int, ...]
    held: bool = False


@dataclass(frozen=True, slots=True)
class Idle:
    """The program waits for a prompt again. Posted by the runtime, which sees it on stdout or in an answer."""


@dataclass(frozen=True, slots=True)
class Lost:
    """No more events will come. Posted by the runtime when the program has died or cannot be trusted any more."""

    error: Exception


ChannelEvent = Encoded | ResetCalled | Decoded | Idle | Lost


class TokenChannel:
    """A channel. Read it in the loop that made it; post() may be called from any thread. Close it, or use `with`."""

    def __init__(
        self,
        key: str,
        token_ids: tuple[int, ...],
        diff: tuple[int, ...],
        on_close: Callable[["TokenChannel"], None],
        longest_hold: float,
    ) -> None:
        self.key = key
        self.token_ids = token_ids
        self.diff = diff
        self.gate = StopGate(longest_hold)
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[ChannelEvent] = asyncio.Queue()
        self._closed = False

    def post(self, event: ChannelEvent) -> None:
        """Add an event. Events posted by one thread arrive in order; events after close() are dropped."""
        if not self._closed:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    @property
    def heard(self) -> bool:
        """Whether next() would return at once."""
        return not self._events.empty()

    async def next(self) -> ChannelEvent:
        return await self._events.get()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._on_close(self)
            self.gate.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
