"""qwen-service bench: measures a running service: time to the first token, tokens per second, errors.

Each client sends new questions one after the other, through OpenAI's API; failed requests are counted and named.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from qwen_service.commands.error_text import answer_text, error_text
from qwen_service.errors import ServiceError

QUESTIONS = (
    "What grows in a garden in spring?",
    "How does a sailing boat move against the wind?",
    "Why is the sky blue in the day and red in the evening?",
    "What should somebody see who is in Lisbon for one day?",
)


class BenchError(ServiceError):
    """The measurement cannot be made."""


@dataclass(frozen=True, slots=True)
class Reply:
    """`rate`: tokens per second after the first one; None for a reply of one token."""

    first_token: float
    rate: float | None
    tokens: int


@dataclass
class Row:
    """The result for one number of clients. Times in seconds."""

    clients: int
    seconds: float = 0.0
    replies: list[Reply] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        rates = [reply.rate for reply in self.replies if reply.rate is not None]
        tokens = sum(reply.tokens for reply in self.replies)
        return {
            "clients": self.clients,
            "replies": len(self.replies),
            "first_token_seconds": median(reply.first_token for reply in self.replies) if self.replies else None,
            "tokens_per_second": median(rates) if rates else None,
            "tokens_per_second_in_all": tokens / self.seconds if tokens else None,
            "errors": dict(self.errors),
        }


def add_bench_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("bench", help="measure a running service", description=__doc__)
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8080", help="the service to measure (default: %(default)s)")
    add("--model", help="model to measure (default: the one that is loaded)")
    add(
        "--clients",
        type=_numbers,
        default=[1, 2, 4],
        metavar="LIST",
        help="numbers of clients at once (default: 1,2,4)",
    )
    add("--rounds", type=_positive, default=3, help="questions that each client sends (default: 3)")
    add("--tokens", type=_positive, default=64, help="longest answer, in tokens (default: 64)")
    add("--api-key-env", metavar="NAME", default="OPENAI_API_KEY", help="environment variable with the API key")
    add("--json", action="store_true", help="print the figures as JSON instead of a table")
    parser.set_defaults(run=bench)


def bench(options: argparse.Namespace) -> int:
    """Measure and print. Returns exit status 1 when nothing was answered. Raises BenchError."""
    rows = asyncio.run(_measure(options))
    if options.json:
        print(json.dumps({"url": options.url, "rows": [row.figures() for row in rows]}, indent=1))
    else:
        _show(rows)
    return 0 if any(row.replies for row in rows) else 1


async def _measure(options: argparse.Namespace) -> list[Row]:
    key = os.environ.get(options.api_key_env)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(base_url=options.url, headers=headers, timeout=600) as http:
        await _warm_up(http, options)
        numbers = count(1)
        rows = []
        for clients in options.clients:
            print(f"Measuring {clients} clients at once ...", file=sys.stderr)
            rows.append(row := Row(clients))
            began = time.monotonic()
            await asyncio.gather(*(_client(http, options, numbers, row) for _ in range(clients)))
            row.seconds = time.monotonic() - began
        return rows


async def _warm_up(http: httpx2.AsyncClient, options: argparse.Namespace) -> None:
    """Send one question that does not count, so that a missing service gives one line instead of many errors."""
    try:
        await _ask(http, options, "Hello!")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise BenchError(
            f"No service answers at {options.url}: {error or type(error).__name__}. Start one: qwen-service serve"
        ) from None
    except _Refused as refused:
        raise BenchError(f"The service at {options.url} refused the question: {refused}") from None


async def _client(http: httpx2.AsyncClient, options: argparse.Namespace, numbers: "count[int]", row: Row) -> None:
    for _ in range(options.rounds):
        number = next(numbers)
        try:
            # The number makes each prompt differ from its first tokens on, so no cache helps.
            row.replies.append(await _ask(http, options, f"Question {number}. {QUESTIONS[number % len(QUESTIONS)]}"))
        except (httpx2.HTTPError, _Refused) as error:
            row.errors[str(error) or type(error).__name__] += 1


class _Refused(Exception):
    """The service answered with an error, before or in the stream."""


async def _ask(http: httpx2.AsyncClient, options: argparse.Namespace, question: str) -> Reply:
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": options.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"model": options.model} if options.model else {}),
    }
    began, first, tokens = time.monotonic(), 0.0, 0
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != httpx2.codes.OK:
            raise _Refused(answer_text(await response.aread(), response.status_code))
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise _Refused(error_text(chunk))
            if not first and any(_has_content(choice) for choice in chunk.get("choices", ())):
                first = time.monotonic()
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    ended = time.monotonic()
    if not first:
        raise _Refused("an empty reply")
    return Reply(first - began, (tokens - 1) / (ended - first) if tokens > 1 else None, tokens)


def _has_content(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta", {})
    return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"))


def _show(rows: Sequence[Row]) -> None:
    table = Table("clients", "first token", "tokens/s", "tokens/s in all", "errors")
    for row in rows:
        found = row.figures()
        table.add_row(
            str(row.clients),
            _shown(found["first_token_seconds"], "{:.2f} s"),
            _shown(found["tokens_per_second"], "{:.1f}"),
            _shown(found["tokens_per_second_in_all"], "{:.1f}"),
            f"{sum(row.errors.values())} of {len(row.replies) + sum(row.errors.values())}",
        )
    console = Console(highlight=False)
    console.print(table)
    for error, times in sum((row.errors for row in rows), Counter[str]()).items():
        console.print(f"{times} x {error}", markup=False)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _numbers(text: str) -> list[int]:
    return [_positive(part.strip()) for part in text.split(",")]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
