"""Who is next, and who must go when the line is full. First come, first served for each client, but not between them.

- Interactive requests before background ones.
- Then clients take turns: who has been served, or has just come, goes behind the others that wait. One that asks a
  lot cannot starve the others, and no row of new clients can starve one that has been served.
- When the line is full, the client with most requests in it gives one up, background first; the newest of them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from qwen_service.chat import ChatRequest, Priority


class Waiting(Protocol):
    @property
    def request(self) -> ChatRequest: ...


W = TypeVar("W", bound=Waiting)


class FairOrder:
    def __init__(self) -> None:
        self._turns = 0  # that were given
        self._since: dict[str, float] = {}  # of who waits, and who was served last: the turn that they wait since

    def sorted(self, waiting: Sequence[W]) -> list[W]:
        """In the order of their turns; `waiting` is all who wait, in the order of arrival."""
        present = {w.request.client for w in waiting}
        self._since = {c: turn for c, turn in self._since.items() if c in present or turn == self._turns}
        for client in present:
            self._since.setdefault(client, self._turns - 0.5)  # before who has just been served
        return sorted(waiting, key=lambda w: (_is_background(w), self._since[w.request.client]))

    def note_turn(self, request: ChatRequest) -> None:
        self._turns += 1
        self._since[request.client] = self._turns


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
