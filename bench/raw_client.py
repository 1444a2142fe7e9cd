"""One request after the other, with the moment of its first text and the number of its tokens.

Its answer is read when it is complete: whatever parses while it measures (an SDK) takes CPU time from what is measured.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from bench.load.http_client import HttpClient

_HAS_TEXT = re.compile(rb'"(?:content|text)":\s*"(?!")')


@dataclass(frozen=True)
class Target:
    """A route: where it is, and how a request for it is written and its token count read."""

    name: str
    path: str
    client: HttpClient
    body: Callable[[str, int], dict[str, Any]]  # of a question and max_tokens
    token_count: re.Pattern[bytes]


@dataclass(frozen=True)
class Answer:
    first_text: float  # seconds from sending
    duration: float
    tokens: int
    content: bytes


async def ask(target: Target, question: str, max_tokens: int) -> Answer:
    return await send(target, orjson.dumps(target.body(question, max_tokens)))


async def send(target: Target, body: bytes) -> Answer:
    reply = await target.client.post(target.path, body)
    if reply.status != 200:
        raise RuntimeError(f"{target.name} answered {reply.status}: {reply.body[:600].decode(errors='replace')}")
    counts = target.token_count.findall(reply.body)
    if not counts:
        raise RuntimeError(f"{target.name} gave no token count: {reply.body[-600:].decode(errors='replace')}")
    first = next((moment for moment, part in reply.parts if _HAS_TEXT.search(part)), reply.ended)
    return Answer(first - reply.sent, reply.ended - reply.sent, int(counts[-1]), reply.body)
