"""Shares the KV cache of llama.cpp among its generations. IO-free.

llama.cpp ends every running generation with an error when together they outgrow the cache. So a generation enters when it
fits beside the others, its growth is counted, and near the limit the youngest is interrupted: it continues
from the same place when there is room again. One that cannot be continued (its grammar would start again) reserves room
for its longest reply if the request bounds that; otherwise it ends when the context is full, or others need the room.
Generations enter in the order of arrival, so that a long prompt is not overtaken for ever.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Stay:
    """One generation: the tokens that it holds, and the most that it may hold."""

    used: int
    most: int
    can_pause: bool
    can_end: bool = False  # it was promised no length
    interrupt: Callable[[], None] = lambda: None
    interrupted: bool = False
    number: int = 0
    admitted: asyncio.Future[None] | None = None

    def claim(self, reserve: int) -> int:
        return min(self.most, self.used + reserve) if self.can_pause or self.can_end else self.most


@dataclass(slots=True)
class KvRoom:
    size: int
    _inside: list[Stay] = field(default_factory=list)
    _waiting: list[Stay] = field(default_factory=list)
    _count: int = 0

    def has_room(self, prompt_tokens: int) -> bool:
        """Whether a generation of this prompt would probably enter at once."""
        return not self._waiting and self._fits(Stay(prompt_tokens, self.size, can_pause=True))

    async def enter(self, stay: Stay) -> None:
        """Wait for room, after those that came before; also for continuing after an interruption. Call leave() afterwards."""
        if stay in self._inside:
            self._inside.remove(stay)
        if not stay.number:
            self._count += 1
            stay.number = self._count
        stay.interrupted = False
        stay.admitted = asyncio.get_running_loop().create_future()
        self._waiting.append(stay)
        self._admit()
        await stay.admitted

    def leave(self, stay: Stay) -> None:
        for group in (self._inside, self._waiting):
            if stay in group:
                group.remove(stay)
        self._admit()

    def grow(self, stay: Stay, used: int) -> None:
        """Note the tokens that it holds now. When room runs out, the youngest generation that can be continued is interrupted."""
        stay.used = max(stay.used, used)
        margin = self.size // 32  # the engine is some steps ahead of the events that we have read
        while len(running := [other for other in self._inside if not other.interrupted]) > 1:
            candidates = [other for other in running if other.can_pause] or [
                other for other in running if other.can_end
            ]
            if sum(other.claim(margin // len(running)) for other in running) <= self.size or not candidates:
                return
            youngest = max(candidates, key=lambda other: other.number)
            youngest.interrupted = True
            youngest.interrupt()

    def _admit(self) -> None:
        while self._waiting:
            first = min(self._waiting, key=lambda stay: stay.number)
            if not self._fits(first):
                return
            self._waiting.remove(first)
            self._inside.append(first)
            if first.admitted is not None and not first.admitted.done():
                first.admitted.set_result(None)

    def _fits(self, stay: Stay) -> bool:
        """Whether it fits. `reserve`: tokens that a reply may write before an interruption is possible."""
        reserve = self.size // 16
        claims = sum(other.claim(reserve) for other in self._inside)
        return not self._inside or claims + stay.claim(reserve) <= self.size
