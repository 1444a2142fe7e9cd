"""Twelve talks on a few cards: how many ids of their prompts were found in a cache, and how many could have been.

A card holds one talk. Which card gets a request decides which talk is forgotten. The best assignment is computed
afterwards, from the order in which the requests began: it knows the future and never finds a card busy.
"""

import asyncio
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from qwen_service.cluster.deployments import ROUTER

ROUTERS = {
    "ours": ROUTER,
    "two choices (Ray's default)": "bench.cluster_routers.TwoChoices",
    "session hash": "bench.cluster_routers.SessionHash",
}
TALKS, TURNS = 12, 5
APART = 8.0  # seconds between two talks, where they come one after another
THINKS = 4.0  # seconds on average between a reply and the next question
WORDS = ("river", "engine", "winter", "letter", "garden", "signal", "copper", "island", "market", "violin")


@dataclass(frozen=True)
class Asked:
    """One request as it was: `reusable` is what a card that has kept the talk finds."""

    began: float
    talk: int
    prompt: int
    cached: int
    reusable: int


@dataclass(frozen=True)
class Outcome:
    router: str
    load: str
    share: float  # of prompt ids that were found in a cache
    best: float  # by the best assignment
    seconds: float  # of a request, waiting included

    def line(self) -> str:
        return (
            f"{self.load}, {self.router}: {self.share:.1%} of prompt ids found, {self.best:.1%} by the best assignment,"
            f" {self.seconds:.2f} s per request"
        )


async def hold_talks(http: httpx.AsyncClient, router: str, *, cards: int, apart: float, seed: int = 7) -> Outcome:
    """`apart`: seconds between the beginnings of two talks; 0: all are alive at once."""
    rooms = [random.Random(seed * 100 + number) for number in range(TALKS)]
    talks = [_hold(http, number, rooms[number], apart * number) for number in range(TALKS)]
    found = [request for talk in await asyncio.gather(*talks) for request in talk]
    asked = sorted((request for request, _ in found), key=lambda request: request.began)
    prompts = sum(request.prompt for request in asked)
    return Outcome(
        router,
        "all at once" if not apart else "one after another",
        share=round(sum(request.cached for request in asked) / prompts, 4),
        best=round(best(asked, cards) / prompts, 4),
        seconds=round(sum(seconds for _, seconds in found) / len(found), 2),
    )


async def _hold(http: httpx.AsyncClient, number: int, chance: random.Random, delay: float) -> list[tuple[Asked, float]]:
    """With the seconds that each reply took."""
    await asyncio.sleep(delay)
    messages: list[dict[str, str]] = []
    found, held = [], 0
    for turn in range(TURNS):
        await asyncio.sleep(chance.expovariate(1 / THINKS))
        said = " ".join(chance.choices(WORDS, k=chance.randint(30, 120)))
        messages.append({"role": "user", "content": f"Talk {number}, {turn}: {said}"})
        began = time.monotonic()
        answer = await http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 9})
        reply: dict[str, Any] = answer.raise_for_status().json()
        usage = reply["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        found.append((Asked(began, number, usage["prompt_tokens"], cached, held), time.monotonic() - began))
        held = usage["total_tokens"]
        messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
    return found


def best(asked: Iterable[Asked], cards: int) -> int:
    """The most ids that any assignment to so many cards finds. Exact: all sets of held talks are followed."""
    reached: dict[frozenset[int], int] = {frozenset(): 0}
    for request in asked:
        later: dict[frozenset[int], int] = {}
        for held, found in reached.items():
            if request.talk in held:
                _keep(later, held, found + request.reusable)
            elif len(held) < cards:
                _keep(later, held | {request.talk}, found)
            else:
                for forgotten in held:
                    _keep(later, held - {forgotten} | {request.talk}, found)
        reached = later
    return max(reached.values())


def _keep(reached: dict[frozenset[int], int], held: frozenset[int], found: int) -> None:
    reached[held] = max(found, reached.get(held, 0))
