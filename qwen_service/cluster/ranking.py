"""Ranks replicas for a prompt: first the one that answers soonest and loses least by it. Pure, without Ray.

The content of a KV cache is described in a few numbers: chained hashes of blocks of 128 ids. The hash of a block also
covers all ids before it. So two prompts share exactly the blocks with equal hashes, and a cache of 2048 ids is described by
16 numbers.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from qwen_service.runtime import HeldIds

BLOCK = 128  # ids
RETURNS_WITHIN = 600.0  # seconds after which the chance that a conversation continues has fallen to 1/e
NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Held:
    """One conversation in a cache. `end` is the hash of all its ids; its last block may be short."""

    blocks: tuple[int, ...]
    length: int
    end: int
    partly: bool  # whether a prompt that shares only a beginning can reuse that beginning

    def reusable(self, prompt: "PromptBlocks") -> int:
        """The number of ids of the prompt that need not be prefilled. At least the last id always must be."""
        if self.length < len(prompt.ids) and prompt.hash_of(self.length) == self.end:
            return self.length
        if not self.partly:
            return 0
        shared = 0
        for mine, its in zip(self.blocks, prompt.blocks, strict=False):
            if mine != its:
                break
            shared += 1
        return min(shared * BLOCK, len(prompt.ids) - 1)


class PromptBlocks:
    """The hashes of one prompt, computed once and compared with many caches."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.blocks = hashes(ids)
        self._at: dict[int, int] = {0: 0}

    def hash_of(self, count: int) -> int:
        """The hash of the first `count` ids."""
        if count not in self._at:
            whole = count // BLOCK
            before = self.blocks[whole - 1] if whole else 0
            rest = self.ids[whole * BLOCK : count]
            self._at[count] = _hash(before, rest) if rest else before
        return self._at[count]


def held(cache: HeldIds) -> Held:
    blocks = PromptBlocks(cache.ids)
    return Held(blocks.blocks, len(cache.ids), blocks.hash_of(len(cache.ids)), cache.partly)


def hashes(ids: Sequence[int]) -> tuple[int, ...]:
    """The hashes of all whole blocks."""
    found, before = [], 0
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        before = _hash(before, ids[start : start + BLOCK])
        found.append(before)
    return tuple(found)


def _hash(before: int, ids: Sequence[int]) -> int:
    digest = blake2b(before.to_bytes(8, "little"), digest_size=8)
    digest.update(array("I", ids).tobytes())
    return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True, slots=True)
class Standing:
    """A replica as the router knows it. Times are in seconds."""

    name: str
    ready: bool = True
    paused: bool = False  # its card is too hot for new work
    slots: int = 1
    running: int = 0
    held: tuple[Held, ...] = ()
    per_id: float = 0.01  # seconds to prefill one id
    per_reply: float = 10.0
    idle: float = NEVER  # since its last reply; NEVER: no reply yet

    @property
    def full(self) -> bool:
        """Whether a new conversation would overwrite another one in its cache."""
        return len(self.held) >= self.slots

    def merit(self, prompt: PromptBlocks) -> float:
        """Seconds of prefill that it saves, minus the expected wait."""
        return max((self._gain(cache, prompt) for cache in self.held), default=0.0) - self._wait

    def _gain(self, cache: Held, prompt: PromptBlocks) -> float:
        """Seconds saved by a cached conversation. If only its beginning matches, the rest is lost, which costs something."""
        reused = cache.reusable(prompt)
        missed = (cache.length - reused) * math.exp(-self.idle / RETURNS_WITHIN) if self.full else 0.0
        return max(0.0, reused - missed) * self.per_id

    @property
    def _wait(self) -> float:
        return max(0, self.running - self.slots + 1) * self.per_reply / self.slots


def rank(prompt: Sequence[int], replicas: Sequence[Standing]) -> list[str]:
    """Names, best first. Of equals one with room in its cache, then the least used: of talks that are forgotten the oldest
    is missed least. Those that cannot work now are left out where others can."""
    able = [replica for replica in replicas if replica.ready and not replica.paused]
    candidates = able or [replica for replica in replicas if replica.ready] or replicas
    blocks = PromptBlocks(prompt)

    def order(replica: Standing) -> tuple[float, int, bool, float]:
        return -round(replica.merit(blocks), 3), replica.running, replica.full, -replica.idle

    return [replica.name for replica in sorted(candidates, key=order)]
