"""Who is next, and who must go when the line is full. First come, first served for each client, but not between them.

- Interactive requests before background ones.
- Then the client that was served longest ago: one that asks a lot cannot starve the others. Who has never been served
  counts as served on arrival, so that ever new clients cannot starve one that is known.
- When the line is full, the client with most requests in it gives one up, background first; the newest of them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from qwen_service.chat import ChatRequest, Priority

MAX_CLIENTS = 1000  # whose last turn is remembered; beyond, those that are not waiting are forgotten


class Waiting(Protocol):
    @property
    def request(self) -> ChatRequest: ...


W = TypeVar("W", bound=Waiting)


class FairOrder:
    def __init__(self) -> None:
        self._last_turn: dict[str, float] = {}
        self._turns = 0  # that were given

    def sorted(self, waiting: Sequence[W]) -> list[W]:
        """In the order of their turns; `waiting` is all who wait, in the order of arrival."""
        self._forget_others(waiting)
        for waiter in waiting:
            self._last_turn.setdefault(waiter.request.client, self._turns - 0.5)  # before who has just been served
        return sorted(waiting, key=lambda w: (_is_background(w), self._last_turn[w.request.client]))

    def note_turn(self, request: ChatRequest, waiting: Sequence[Waiting]) -> None:
        self._forget_others(waiting)
        self._turns += 1
        self._last_turn[request.client] = self._turns

    def _forget_others(self, waiting: Sequence[Waiting]) -> None:
        if len(self._last_turn) >= MAX_CLIENTS:
            present = {w.request.client for w in waiting}
            self._last_turn = {c: turn for c, turn in self._last_turn.items() if c in present}


def surplus(waiting: Sequence[W]) -> W:
    """Of a line that is one too long, the one who must go; the last is who has just come."""
    newest = waiting[-1]
    candidates = [w for w in waiting if _is_background(w)] or list(waiting)
    counts = Counter(w.request.client for w in candidates)
    most = max(counts.values())
    if newest in candidates and counts[newest.request.client] == most:
        return newest
    return next(w for w in reversed(candidates) if counts[w.request.client] == most)


class Priorities:
    """Background is what says so in `X-Priority`, and what begins like the tasks that chat pages set by themselves."""

    def __init__(self, markers: Iterable[str]) -> None:
        alternatives = "|".join(re.escape(marker) for marker in markers)
        self._marker = re.compile(rf"\s*(?:{alternatives})") if alternatives else None

    def apply(self, request: ChatRequest, asked: str, client: str) -> ChatRequest:
        priority: Priority = "background" if self._is_background(request, asked) else "interactive"
        return replace(request, priority=priority, client=request.client or client)

    def _is_background(self, request: ChatRequest, asked: str) -> bool:
        if asked or self._marker is None or not request.messages:
            return asked == "background"
        return self._marker.match(request.messages[-1].content) is not None


def _is_background(waiting: Waiting) -> bool:
    return waiting.request.priority == "background"
