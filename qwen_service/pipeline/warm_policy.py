"""Decides what the KV cache of an idle engine should hold, from the requests seen so far. IO-free.

There is one policy per engine. It is told of each request that gets a turn and of each end of a reply, and weighs two guesses
about the next request: it continues the last conversation, or it begins another one with a known head. A
head is everything before the first message of a user: system messages and tools.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from qwen_service.recent import put_recent

Ids = tuple[int, ...]
Head = bytes  # digest of system messages, tools and what else a template shows with them

REMEMBERED = 8  # recent requests; older ones say little about the next
HEADS = 16
ENOUGH = 2  # conversations that must have begun with a head before it counts
UNKNOWN_RHYTHM = 60.0  # seconds of silence after which a conversation counts as over
SHORTEST_RHYTHM = 20.0  # seconds
ALMOST_NEVER = 0.02  # the chance that a conversation which counts as over goes on


@dataclass(frozen=True, slots=True)
class Option:
    """A prefix that the cache could hold. `held`: it already does."""

    kind: Literal["conversation", "head"]
    size: int  # ids
    held: bool = False
    # Ids of others that would make room, weighted by the chance that they go on; None: all that is held.
    loses: float | None = None
    head: Head = b""


@dataclass(slots=True)
class WarmPolicy:
    """The policy of one engine. All times are seconds of one monotonic clock."""

    # What the recent requests began with; None: the request continued the conversation.
    _outcomes: deque[Head | None] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    # Seconds from a reply to the next request; `_rhythm` has those between turns of one conversation only.
    _gaps: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _rhythm: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _heads: OrderedDict[Head, int] = field(default_factory=OrderedDict)  # head -> number of its conversations
    _asked: bool = False
    _ended: float | None = None

    def arrived(self, head: Head, now: float, *, goes_on: bool, varies: bool = False) -> None:
        """Note that a request has got its turn. `goes_on`: it continues the conversation of the request before.

        `varies`: stable_prefix.py made this head equal to an earlier one.
        """
        if self._asked:
            self._outcomes.append(None if goes_on else head)
        if self._ended is not None:
            self._gaps.append(now - self._ended)
            if goes_on:
                self._rhythm.append(now - self._ended)
        if not goes_on:
            put_recent(self._heads, head, self._heads.get(head, int(varies)) + 1, HEADS)
        self._asked, self._ended = True, None

    def ended(self, now: float) -> None:
        self._ended = now

    def expect(self, head: Head) -> None:
        """Expect this head, which was used most before the service stopped."""
        self._heads.setdefault(head, ENOUGH)

    @property
    def common_heads(self) -> list[Head]:
        """The heads that enough conversations have begun with, the most used first."""
        return sorted((h for h, count in self._heads.items() if count >= ENOUGH), key=lambda h: -self._heads[h])

    def is_over(self, now: float) -> bool:
        """Whether the last conversation has been quiet for longer than its rhythm."""
        return self._ended is not None and now - self._ended >= self._patience

    def next_look(self, now: float) -> float | None:
        """Seconds until the choice may change although nothing happens; None: never."""
        if self._ended is None or self.is_over(now):
            return None
        return self._ended + self._patience - now

    def choose(self, options: Sequence[Option], now: float, *, seconds_per_id: float) -> Option | None:
        """Choose the option to prefill now; None: leave the cache as it is."""
        rivals = [option for option in options if not option.held or option.loses is None]
        gains = {option: self._chance(option, now) * option.size - (option.loses or 0.0) for option in rivals}
        best = max(rivals, key=lambda option: gains[option], default=None)
        if best is None or best.held or gains[best] <= 0:
            return None
        return best if self._pays(self._chance(best, now), best.size * seconds_per_id) else None

    @property
    def _patience(self) -> float:
        return max(SHORTEST_RHYTHM, 3 * max(self._rhythm)) if self._rhythm else UNKNOWN_RHYTHM

    def _chance(self, option: Option, now: float) -> float:
        """The chance that the next request begins with this; about one half when little was seen."""
        if option.kind == "conversation":
            if self.is_over(now):
                return ALMOST_NEVER
            return (self._outcomes.count(None) + 1) / (len(self._outcomes) + 2)
        counted: Sequence[Head | None] = self._outcomes
        if self.is_over(now):
            counted = [head for head in self._outcomes if head is not None]
        return (counted.count(option.head) + 1) / (len(counted) + 2)

    def _pays(self, chance: float, seconds: float) -> bool:
        """Whether prefilling saves more than it costs: a request that needs just this loses nothing by waiting for its end; any
        other request waits in vain."""
        disturbed = min(1.0, seconds / max(median(self._gaps), 0.1)) if self._gaps else 0.5
        return chance * seconds > (1 - chance) * disturbed * seconds / 2
