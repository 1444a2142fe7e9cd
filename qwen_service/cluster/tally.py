"""Counts a replica's work for its reports: pace, running works, content of the cache."""

import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from qwen_service.cluster.ranking import NEVER, Held, held
from qwen_service.cluster.wire import Work
from qwen_service.engine import Engine
from qwen_service.models.spec import ModelSpec
from qwen_service.runtime import HeldIds, Piece, Prefill

SEEN = 64  # most keys of works in a report
NEWEST = 0.3  # weight of the newest reply in a moving mean


class Tally:
    def __init__(self, spec: ModelSpec) -> None:
        self.per_id = 1 / spec.prefill_rate if spec.prefill_rate else 0.01
        self.per_reply = 10.0
        self.tokens_per_second = spec.decode_rate or 0.0
        self.seen: deque[str] = deque(maxlen=SEEN)
        self._running: dict[str, tuple[int, ...]] = {}
        self._ended: float | None = None
        # The assumed content of the cache, for runtimes that do not report it.
        self._guessed: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def idle(self) -> float:
        if self._running:
            return 0.0
        return NEVER if self._ended is None else time.monotonic() - self._ended

    @contextmanager
    def of(self, work: Work, slots: int) -> Iterator["Entry"]:
        entry = Entry(work)
        self.seen.append(work.key)
        self._running[work.key] = work.prompt.token_ids
        try:
            yield entry
        finally:
            del self._running[work.key]
            self._ended = time.monotonic()
            self._measure(entry)
            self._guessed[work.key] = (*work.prompt.token_ids, *entry.ids)
            while len(self._guessed) > slots:
                self._guessed.popitem(last=False)

    def held(self, engine: Engine) -> tuple[Held, ...]:
        """The content of the cache, including the prompts of running works, which will be in it."""
        known = engine.runtime.held_ids()
        if known is None:
            known = [HeldIds(ids, partly=True) for ids in self._guessed.values()]
        coming = [HeldIds(ids, partly=True) for ids in self._running.values()]
        return tuple(map(held, [*coming, *known][: engine.limits.slots]))

    def _measure(self, entry: "Entry") -> None:
        if entry.first is None or not entry.tokens:
            return
        took = time.monotonic() - entry.started
        self.per_reply = _mean(self.per_reply, took)
        if entry.prefilled > 0:
            self.per_id = _mean(self.per_id, (entry.first - entry.started) / entry.prefilled)
        if entry.tokens > 1 and (generating := entry.last - entry.first) > 0:
            self.tokens_per_second = _mean(self.tokens_per_second, (entry.tokens - 1) / generating)


class Entry:
    """A running generation."""

    def __init__(self, work: Work) -> None:
        self.started = time.monotonic()
        self.first: float | None = None
        self.last = self.started
        self.prefilled = len(work.prompt.token_ids)
        self.tokens = 0
        self.ids: list[int] = []

    def add(self, item: Prefill | Piece) -> None:
        if isinstance(item, Prefill):
            self.prefilled = item.prompt_tokens - item.cached_tokens
            return
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.tokens += item.token_count
        self.ids += item.token_ids


def _mean(before: float, newest: float) -> float:
    return newest if not before else before + NEWEST * (newest - before)
