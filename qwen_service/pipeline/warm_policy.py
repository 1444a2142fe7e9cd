"""What the KV cache of an idle engine should hold, judged by what has been asked so far. IO-free.

One policy per engine. It is told of each request that gets a turn and of each end of a reply, and weighs two guesses
about the next request: it goes on with the last conversation, or it begins another one with a head that it knows. A
head is what stands before the first message of a user: system messages and tools.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

Ids = tuple[int, ...]
Head = bytes  # digest of system messages, tools and what else a template shows with them

REMEMBERED = 8  # requests; what was longer ago says little about the next one
HEADS = 16
ENOUGH = 2  # requests that must have begun with a head before it is worth something
UNKNOWN_RHYTHM = 60.0  # seconds without a word after which a conversation is taken to be over
SHORTEST_RHYTHM = 20.0  # seconds
ALMOST_NEVER = 0.02  # the chance that a conversation goes on that is taken to be over


@dataclass(frozen=True, slots=True)
class Option:
    """Something that the cache could hold. `held`: it does."""

    kind: Literal["conversation", "head"]
    size: int  # ids
    held: bool = False
    head: Head = b""


@dataclass(slots=True)
class WarmPolicy:
    """Times are seconds of one clock, whichever it is."""

    _outcomes: deque[Head | None] = field(default_factory=lambda: deque(maxlen=REMEMBERED))  # None: it went on
    _gaps: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))  # from a reply to the next request
    _rhythm: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))  # those within a conversation
    _heads: OrderedDict[Head, int] = field(default_factory=OrderedDict)  # with the number of their conversations
    _asked: bool = False
    _ended: float | None = None

    def arrived(self, head: Head, now: float, *, goes_on: bool, varies: bool = False) -> None:
        """A request has got its turn. `goes_on`: with the conversation of the request before.

        `varies`: the head was made the same as others, of which at least one has come before.
        """
        if self._asked:
            self._outcomes.append(None if goes_on else head)
        if self._ended is not None:
            self._gaps.append(now - self._ended)
            if goes_on:
                self._rhythm.append(now - self._ended)
        if not goes_on:
            self._heads[head] = self._heads.get(head, int(varies)) + 1
            self._heads.move_to_end(head)
            if len(self._heads) > HEADS:
                self._heads.popitem(last=False)
        self._asked, self._ended = True, None

    def ended(self, now: float) -> None:
        self._ended = now

    def expect(self, head: Head) -> None:
        """It was used most before the service stopped."""
        self._heads.setdefault(head, ENOUGH)

    @property
    def common_heads(self) -> list[Head]:
        """Those that enough conversations have begun with; the most used first."""
        return sorted((h for h, count in self._heads.items() if count >= ENOUGH), key=lambda h: -self._heads[h])

    def is_over(self, now: float) -> bool:
        """The last conversation has been quiet for longer than its rhythm."""
        return self._ended is not None and now - self._ended >= self._patience

    def next_look(self, now: float) -> float | None:
        """Seconds until it may judge otherwise although nothing has happened; None: never."""
        if self._ended is None or self.is_over(now):
            return None
        return self._ended + self._patience - now

    def choose(self, options: Sequence[Option], now: float, *, seconds_per_id: float) -> Option | None:
        """The option to prefill now; None where the cache is best left as it is."""
        chances = {option: self._chance(option, now) for option in options}
        best = max(options, key=lambda option: chances[option] * option.size, default=None)
        if best is None or best.held or not best.size:
            return None
        return best if self._pays(chances[best], best.size * seconds_per_id) else None

    @property
    def _patience(self) -> float:
        return max(SHORTEST_RHYTHM, 3 * max(self._rhythm)) if self._rhythm else UNKNOWN_RHYTHM

    def _chance(self, option: Option, now: float) -> float:
        """That the next request begins so; with little seen it is about one half."""
        if option.kind == "conversation":
            if self.is_over(now):
                return ALMOST_NEVER
            return (self._outcomes.count(None) + 1) / (len(self._outcomes) + 2)
        counted: Sequence[Head | None] = self._outcomes
        if self.is_over(now):
            counted = [head for head in self._outcomes if head is not None]
        return (counted.count(option.head) + 1) / (len(counted) + 2)

    def _pays(self, chance: float, seconds: float) -> bool:
        """A request that needs just this loses nothing by waiting for the rest of it; any other waits for nothing."""
        disturbed = min(1.0, seconds / max(median(self._gaps), 0.1)) if self._gaps else 0.5
        return chance * seconds > (1 - chance) * disturbed * seconds / 2


def common_beginning(one: Sequence[int], other: Sequence[int]) -> Ids:
    count = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return tuple(one[:count])
