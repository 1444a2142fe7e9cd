"""Two other ways to choose a replica, for comparison. Ray imports this module by value."""

import random
from typing import Any
from zlib import crc32

from qwen_service.cluster.router import PrefixRouter

SESSION = 64  # ids of a prompt's beginning that tell one talk from another


class TwoChoices(PrefixRouter):
    """As Ray's own default: two at random, of which Ray takes the one with the shorter queue."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]


class SessionHash(PrefixRouter):
    """Always the same one for a talk, which waits for it while it is busy."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        work = next(iter(pending_request.args), None) if pending_request is not None else None
        prompt = getattr(work, "prompt", None)
        if prompt is None:
            return [candidate_replicas]
        number = crc32(repr(prompt.token_ids[:SESSION]).encode())
        ordered = sorted(candidate_replicas, key=lambda replica: replica.replica_id.unique_id)
        return [[ordered[number % len(ordered)]]]
