"""Which replica gets a prompt: the one that answers it soonest and forgets the least for it. Pure, without Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_service.cluster.blocks import Held, PromptBlocks

RETURNS_WITHIN = 600.0  # seconds: after so long, one talk in e is still continued
NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Standing:
    """One replica as the router knows it now. Times are in seconds."""

    name: str
    ready: bool = True
    paused: bool = False  # its card is too hot for new work
    slots: int = 1
    running: int = 0
    held: tuple[Held, ...] = ()
    per_id: float = 0.01  # what it costs to prefill one
    per_reply: float = 10.0
    idle: float = NEVER  # since its last reply; NEVER: it has had none

    def merit(self, prompt: PromptBlocks) -> float:
        """Seconds of prefill that are saved, less those of talks that are forgotten, less the wait."""
        reused = [cache.reusable(prompt) for cache in self.held]
        saved = max(reused, default=0) * self.per_id
        return saved - self._forgotten(reused) - self._wait

    def _forgotten(self, reused: Sequence[int]) -> float:
        """A full cache gives up one of its talks, in whole or in part; it costs what prefilling that again will cost."""
        if len(self.held) < self.slots:
            return 0.0
        lost = min((cache.length - kept for cache, kept in zip(self.held, reused, strict=True)), default=0)
        return lost * self.per_id * math.exp(-self.idle / RETURNS_WITHIN)

    @property
    def _wait(self) -> float:
        return max(0, self.running - self.slots + 1) * self.per_reply / self.slots


def rank(prompt: Sequence[int], replicas: Sequence[Standing]) -> list[str]:
    """Names, best first. Of equals the least used. Those that cannot work now are left out where others can."""
    able = [replica for replica in replicas if replica.ready and not replica.paused]
    candidates = able or [replica for replica in replicas if replica.ready] or replicas
    blocks = PromptBlocks(prompt)

    def order(replica: Standing) -> tuple[float, int, float]:
        return -round(replica.merit(blocks), 3), replica.running, -replica.idle

    return [replica.name for replica in sorted(candidates, key=order)]
