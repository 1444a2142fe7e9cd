"""A server that is measured: how to ask it, and what it says about itself."""

from dataclasses import dataclass
from typing import Any

import orjson

from bench.load.errors import BenchError
from bench.load.http_client import ExchangeFailed, HttpClient
from bench.load.wire import WIRES, Answer, Question, Wire, error_in

UNKNOWN_CONTEXT = 2048  # tokens; what most small servers are started with


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    url: str
    client: HttpClient
    wire: Wire
    model: str
    context: int

    async def ask(self, question: Question) -> tuple[Answer, float, float]:
        """The answer, when the request was sent and when the reply ended. Failures are in the answer."""
        body = orjson.dumps(self.wire.body(self.model, question))
        try:
            reply = await self.client.post(self.wire.path, body)
        except ExchangeFailed as failure:
            answer = self.wire.read(failure.reply.parts)
            answer.error = str(failure)
            return answer, failure.reply.sent, failure.reply.ended
        if reply.status != 200:
            return Answer(error=error_in(reply.body, reply.status)), reply.sent, reply.ended
        return self.wire.read(reply.parts), reply.sent, reply.ended


async def find_target(
    name: str, url: str, *, api: str, model: str | None, api_key: str | None, timeout: float
) -> Target:
    """Asks the server which API it speaks and which model it has. Raises BenchError."""
    if not url.startswith(("http://", "https://")):
        raise BenchError(f"{url!r} is no address of a server: it must start with http:// or https://")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    client = HttpClient(url, headers, timeout=timeout)
    wires = list(WIRES.values()) if api == "auto" else [WIRES[api]]
    failures = []
    for wire in wires:
        try:
            models = await _models(client, wire)
        except BenchError as error:
            failures.append(error.message)
            continue
        return Target(name, url, client, wire, model or _first(models, url), _context(models, model))
    raise BenchError(f"{url} cannot be measured: {'; '.join(failures)}")


async def _models(client: HttpClient, wire: Wire) -> list[dict[str, Any]]:
    path, key = ("/v1/models", "data") if wire.name == "openai" else ("/api/tags", "models")
    try:
        reply = await client.get(path)
    except ExchangeFailed as failure:
        raise BenchError(f"GET {path}: {failure}") from None
    if reply.status != 200:
        raise BenchError(f"GET {path}: {error_in(reply.body, reply.status)}")
    try:
        return list(orjson.loads(reply.body)[key])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise BenchError(f"GET {path} answered something that is no list of models") from None


def _first(models: list[dict[str, Any]], url: str) -> str:
    loaded = [entry for entry in models if entry.get("state", "loaded") == "loaded"] or models
    if not loaded:
        raise BenchError(f"{url} has no model; name one with --model")
    return str(loaded[0].get("id") or loaded[0].get("model"))


def _context(models: list[dict[str, Any]], model: str | None) -> int:
    """Under the names that servers give it; ours is `context`, vLLM's `max_model_len`."""
    entry = next((entry for entry in models if model in (None, entry.get("id"))), {})
    return int(entry.get("context") or entry.get("max_model_len") or UNKNOWN_CONTEXT)
