"""Ranks replicas for a prompt: first the one that answers soonest and loses least by it. Pure, without Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_service.cluster.blocks import Held, PromptBlocks

RETURNS_WITHIN = 600.0  # seconds after which the chance that a conversation continues has fallen to 1/e
NEVER = math.inf


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
