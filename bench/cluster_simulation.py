"""Talks on cards that hold one talk each, without Ray and in no time: how much each way to choose a card finds again.

    python -m bench.cluster_simulation [--talks 12] [--cards 4] [--seeds 50]

The ranking is the one that the cluster uses. Pace, prompts and pauses are those of a Qwen3-4B on main_api and of people who
type; the line before the cards is first in, first out. The best assignment is computed afterwards (bench/cluster_talks.py).
"""

import argparse
import heapq
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from bench.cluster_talks import Asked, best
from qwen_service.cluster.ranking import NEVER, Held, Standing, held, rank
from qwen_service.runtime import HeldIds

STEP, TOKEN, BLOCK = 1.2, 0.27, 128  # seconds, seconds, ids
TURNS = 6


@dataclass
class Card:
    number: int
    talk: int = -1
    held: tuple[Held, ...] = ()
    length: int = 0
    free_at: float = 0.0
    used: bool = False

    def standing(self, now: float) -> Standing:
        idle = max(0.0, now - self.free_at) if self.used else NEVER
        busy = int(self.free_at > now)
        return Standing(str(self.number), running=busy, held=self.held, per_id=STEP / BLOCK, per_reply=15, idle=idle)


@dataclass
class Talk:
    number: int
    chance: random.Random
    ids: list[int] = field(default_factory=list)
    turns: int = 0
    kept: int = 0  # ids that a card holds that has kept it

    def ask(self) -> None:
        self.turns += 1
        self.ids += [self.chance.randrange(150_000) for _ in range(self.chance.randint(30, 200))]


Choice = Callable[[Talk, Sequence[Card], float], Card | None]  # None: it waits


def by_ranking(talk: Talk, cards: Sequence[Card], now: float) -> Card | None:
    order = rank(talk.ids, [card.standing(now) for card in cards])
    return next((cards[int(name)] for name in order if cards[int(name)].free_at <= now), None)


def by_two_choices(talk: Talk, cards: Sequence[Card], now: float) -> Card | None:
    free = [card for card in cards if card.free_at <= now]
    while free:
        pair = talk.chance.sample(list(cards), min(2, len(cards)))
        if chosen := next((card for card in pair if card in free), None):
            return chosen
    return None


def by_hash(talk: Talk, cards: Sequence[Card], now: float) -> Card | None:
    card = cards[crc32(f"talk {talk.number}".encode()) % len(cards)]
    return card if card.free_at <= now else None


WAYS: dict[str, Choice] = {"ours": by_ranking, "two choices": by_two_choices, "session hash": by_hash}


@dataclass(frozen=True)
class Result:
    share: float
    best: float
    seconds: float  # from question to the end of the reply


def simulate(choose: Choice, *, talks: int, cards: int, seed: int, pause: float, apart: float) -> Result:
    table = [Card(number) for number in range(cards)]
    people = [Talk(number, random.Random(seed * 1000 + number)) for number in range(talks)]
    events = [(apart * talk.number + talk.chance.expovariate(1 / pause), talk.number) for talk in people]
    heapq.heapify(events)
    line: list[tuple[float, Talk]] = []
    asked: list[Asked] = []
    waits: list[float] = []
    while events or line:
        now, number = heapq.heappop(events)
        if number >= 0:  # -1: a card has become free
            people[number].ask()
            line.append((now, people[number]))
        for place in list(line):
            if (card := choose(place[1], table, now)) is None:
                continue
            line.remove(place)
            asked.append(_work(place[1], card, now))
            waits.append(card.free_at - place[0])
            heapq.heappush(events, (card.free_at, -1))
            if place[1].turns < TURNS:
                heapq.heappush(events, (card.free_at + place[1].chance.expovariate(1 / pause), place[1].number))
    prompts = sum(request.prompt for request in asked)
    found = sum(request.cached for request in asked)
    return Result(found / prompts, best(asked, cards) / prompts, statistics.mean(waits))


def _work(talk: Talk, card: Card, now: float) -> Asked:
    prompt = len(talk.ids)
    cached = card.length if card.talk == talk.number else 0
    reply = talk.chance.randint(10, 60)
    request = Asked(now, talk.number, prompt, cached, talk.kept)
    talk.ids += [talk.chance.randrange(150_000) for _ in range(reply)]
    talk.kept = len(talk.ids)
    card.talk, card.length, card.used = talk.number, talk.kept, True
    card.held = (held(HeldIds(tuple(talk.ids))),)
    card.free_at = now + -(-(prompt - cached) // BLOCK) * STEP + reply * TOKEN
    return request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--talks", type=int, default=12)
    parser.add_argument("--cards", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=50)
    options = parser.parse_args()
    print("| load | way | prompt ids found | best assignment | seconds per request |\n|---|---|--:|--:|--:|")
    for load, pause, apart in (("all at once", 60.0, 0.0), ("one after another", 20.0, 60.0)):
        for name, choose in WAYS.items():
            results = [
                simulate(choose, talks=options.talks, cards=options.cards, seed=seed, pause=pause, apart=apart)
                for seed in range(options.seeds)
            ]
            share, top, seconds = (
                statistics.mean(getattr(result, key) for result in results) for key in ("share", "best", "seconds")
            )
            print(f"| {load} | {name} | {share:.1%} | {top:.1%} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
