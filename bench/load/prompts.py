"""What is asked: the kinds of talk that owners have. Every round asks something new, so that no cache helps by chance.

Within one round all targets are asked the same but for a number at the very beginning: a proxy and the engine behind
it, or two APIs of one server, share a cache, and whoever is asked second would find it filled. A talk goes on with the
replies that the target itself gave.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

PLACES = (
    "France",
    "Peru",
    "Kenya",
    "Japan",
    "Norway",
    "Vietnam",
    "Mexico",
    "Egypt",
    "Poland",
    "Chile",
    "Ghana",
    "Nepal",
)
THINGS = ("a bicycle", "a sailing boat", "a guitar", "a telescope", "a loaf of bread", "a clock", "a kite", "a radio")
NOUNS = ("river", "engineer", "garden", "machine", "teacher", "harbour", "library", "market", "valley", "orchestra")
VERBS = ("follows", "repairs", "describes", "crosses", "paints", "measures", "visits", "remembers", "supplies")
LOOKS = ("quiet", "narrow", "famous", "patient", "northern", "wooden", "careful", "distant", "bright", "ancient")
FACTS_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "continent": {"type": "string"},
        "population_millions": {"type": "number"},
        "languages": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
    },
    "required": ["name", "continent", "population_millions", "languages"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """In tokens. `per_word` is measured by the warm-up where the server counts prompt tokens."""

    answer: int
    long_prompt: int
    per_word: float = 1.3


@dataclass(frozen=True, slots=True)
class Scenario:
    """`turns(number, random, sizes)` are the user's messages, one after the other; they begin with the number."""

    name: str
    what: str
    turns: Callable[[int, Random, Sizes], list[str]]
    json_schema: Mapping[str, Any] | None = None


def number_for(seed: str) -> int:
    """Six digits, so that it is as many tokens for everybody."""
    return Random(seed).randrange(10**5, 10**6)


def _short(number: int, random: Random, _sizes: Sizes) -> list[str]:
    return [f"Question {number}: what is the capital of {random.choice(PLACES)}, and what is it known for?"]


def _talk(number: int, random: Random, _sizes: Sizes) -> list[str]:
    thing = random.choice(THINGS)
    return [
        f"Hello, this is visit {number}. I want to build {thing}. Where do I begin?",
        "Which tools do I need?",
        "What do beginners usually get wrong?",
        "How long will it take if I have two hours a week?",
        "Sum up your advice in three points.",
    ]


def _long(number: int, random: Random, sizes: Sizes) -> list[str]:
    words: list[str] = [f"Report {number}."]
    while len(words) * sizes.per_word < sizes.long_prompt:
        words += _sentence(random).split()
    return [" ".join(words) + "\n\nWhat is this report about? Answer in two sentences."]


def _sentence(random: Random) -> str:
    one, other = random.sample(NOUNS, 2)
    return f"The {random.choice(LOOKS)} {one} {random.choice(VERBS)} the {random.choice(LOOKS)} {other}."


def _json(number: int, random: Random, _sizes: Sizes) -> list[str]:
    return [f"Request {number}: give the basic facts about {random.choice(PLACES)} as JSON."]


def _essay(number: int, random: Random, sizes: Sizes) -> list[str]:
    return [f"Essay {number}: write {2 * sizes.answer} words about {random.choice(THINGS)} and its history."]


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("short", "a short question", _short),
        Scenario("talk", "a talk of five turns", _talk),
        Scenario("long", "a prompt near the context", _long),
        Scenario("json", "an answer as JSON after a schema", _json, FACTS_SCHEMA),
        Scenario("essay", "a long answer", _essay),
    )
}
STANDARD = ("short", "talk", "long", "json")
