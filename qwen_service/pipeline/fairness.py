"""Decides who is next, and who must leave a full line. First come, first served within one client, but not between clients.

- Interactive requests before background ones.
- Then clients take turns: a client that has been served, or is new, goes behind the other waiting ones. So a client with
  many requests cannot starve the others, and a stream of new clients cannot starve an old one.
- When the line is full, the client with the most requests in it loses its newest one, background requests first.
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
        self._turns = 0  # turns given so far
        self._since: dict[str, float] = {}  # client -> the turn since which it waits

    def sorted(self, waiting: Sequence[W]) -> list[W]:
        """Sort by turn. `waiting`: all waiting requests, in order of arrival."""
        present = {w.request.client for w in waiting}
        self._since = {c: turn for c, turn in self._since.items() if c in present or turn == self._turns}
        for client in present:
            self._since.setdefault(client, self._turns - 0.5)  # just before the client that was served last
        return sorted(waiting, key=lambda w: (_is_background(w), self._since[w.request.client]))

    def note_turn(self, request: ChatRequest) -> None:
        self._turns += 1
        self._since[request.client] = self._turns


def surplus(waiting: Sequence[W]) -> W:
    """The one that must leave a line which is one too long. The last of `waiting` has just come."""
    newest = waiting[-1]
    candidates = [w for w in waiting if _is_background(w)] or list(waiting)
    counts = Counter(w.request.client for w in candidates)
    most = max(counts.values())
    if newest in candidates and counts[newest.request.client] == most:
        return newest
    return next(w for w in reversed(candidates) if counts[w.request.client] == most)


class Priorities:
    """Finds a request's priority: background by `X-Priority`, or because it begins like the automatic tasks of chat pages."""

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
