"""What valid but hostile bodies of the largest size cost: python -m bench.hostile_bodies MODEL.gguf [--json FILE]

Starts the service as a user starts it and sends it, one after the other, each body of bodies(). Meanwhile it asks
/health/live without a pause. Prints for each body the status, the slowest /health/live beside it, and by how many times
the body's size the service's memory grew at its peak. Ends with 1 if a limit is broken.
"""

import argparse
import asyncio
import contextlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx2

from bench.service_under_test import ServiceUnderTest, running

SIZE = 4_194_304  # the default of max_body_bytes
SLOWEST = 0.25  # seconds for /health/live on an idle machine of two cores
GROWTH = 12.0  # times the body
DEADLINE = 120.0


@dataclass(frozen=True, slots=True)
class Body:
    """One body for one route. `make` returns its bytes: several megabytes, which take a while to write."""

    name: str
    path: str
    make: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Cost:
    """`size`: of the body in bytes. `growth`: of the process's memory at its peak, in sizes of the body."""

    name: str
    path: str
    size: int
    status: int
    seconds: float
    slowest_health: float
    growth: float


def bodies(model: str, size: int = SIZE) -> Iterator[Body]:
    """Bodies of nearly `size` bytes for every dialect: valid JSON that is expensive for somebody."""
    for name, fields in _contents(size - 200):
        for path, body in _routes(fields):
            yield Body(name, path, partial(_padded, {**body, "model": model}, size))
    prompts: dict[str, Any] = {
        "many ids, the last wrong": [*[1] * (size // 2 - 200), "a"],
        "many ids": [1] * (size // 2 - 200),
        "many lists of ids": [[1]] * (size // 4 - 200),
        "many texts": ["a"] * (size // 4 - 200),
        "one long text": "all work and no play " * (size // 21 - 10),
        "one long word": "a" * (size - 200),
    }
    for name, prompt in prompts.items():
        yield Body(name, "/v1/completions", partial(_json, {"prompt": prompt, "max_tokens": 1, "echo": True}))
        yield Body(name, "/v1/embeddings", partial(_json, {"input": prompt}))
        generate: dict[str, Any] = {"prompt": "a", "context": prompt}
        if isinstance(prompt, str):
            generate = {"prompt": prompt, "options": {"num_predict": 1}}
        yield Body(name, "/api/generate", partial(_json, {"model": model, **generate}))
    yield Body("many unknown fields", "/v1/models/load", partial(_many_keys, size))
    yield Body("half surrogates", "/v1/completions", partial(_half_surrogates, size))


def _contents(size: int) -> Iterator[tuple[str, dict[str, Any]]]:
    user = {"role": "user", "content": "a"}
    part = {"type": "text", "text": ""}
    yield "many empty messages", {"messages": [{}] * (size // 3)}
    yield "many messages", {"messages": [user] * (size // 33)}
    yield "messages up to the bound", {"messages": [{"role": "user", "content": "a " * (size // 8192 - 20)}] * 4096}
    yield "many parts", {"messages": [{"role": "user", "content": [part] * (size // 29)}]}
    yield "many parts of many messages", {"messages": [{"role": "user", "content": [part] * 4}] * (size // 160)}
    yield "many nested lists", {"messages": [user], "metadata": [[[]]] * (size // 7)}
    yield "many keys", {"messages": [user], "metadata": {f"{n:x}": 1 for n in range(size // 12)}}
    yield "many numbers", {"messages": [user], "metadata": [1] * (size // 2)}
    yield "deep nesting", {"messages": [user], "metadata": _Raw(b"[" * (size // 2) + b"]" * (size // 2))}
    yield "many tools", {"messages": [user], "tools": [_tool("f", {})] * (size // 100)}
    for name, schema in _schemas(size // 160):
        tools = [_tool(f"f{n}", schema) for n in range(64)]
        yield f"64 tools: {name}", {"messages": [user], "tools": tools}
    for name, schema in _schemas(250_000):
        yield f"format: {name}", {"messages": [user], "schema": schema}
    yield "many stops", {"messages": [user], "stop": ["a"] * (size // 4)}
    yield "many long stops", {"messages": [user], "stop": ["a" * 1024] * (size // 1030)}
    yield "large logit_bias", {"messages": [user], "logit_bias": {str(n): 1 for n in range(size // 12)}}
    yield "many calls", {"messages": [user, {"role": "assistant", "tool_calls": [_call("{}")] * (size // 80)}, user]}
    yield (
        "a call's long arguments",
        {"messages": [user, {"role": "assistant", "tool_calls": [_call("x" * (size - 200))]}, user]},
    )


def _schemas(size: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Schemas of about `size` bytes."""
    yield "many properties", {"properties": {f"p{n}": {"type": "string"} for n in range(size // 28)}}
    yield "long enum", {"enum": [f"e{n}" for n in range(size // 9)]}
    yield (
        "long chain of $ref",
        {
            "$ref": "#/$defs/d0",
            "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(size // 35)} | {f"d{size // 35}": {}},
        },
    )
    doubled = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)}
    yield "doubled $ref", {"$ref": "#/$defs/d0", "$defs": {**doubled, "d30": {"type": "integer"}}}
    yield "long pattern", {"type": "string", "pattern": "(a|b)*" * (size // 6)}
    yield "many patterns", {"properties": {f"p{n}": {"pattern": "^(a+)+$"} for n in range(size // 30)}}
    yield "anyOf of everything", {"anyOf": [{"properties": {"a": {"const": n}}} for n in range(size // 38)]}
    nested: dict[str, Any] = {}
    for _ in range(min(size // 10, 400)):
        nested = {"items": nested}
    yield "deeply nested", nested


def _routes(fields: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The routes that take these fields, and the body that makes them a request of each."""
    rest = {"max_tokens": 1} | {key: value for key, value in fields.items() if key not in ("schema", "stop")}
    schema, stop = fields.get("schema"), fields.get("stop")
    openai: dict[str, Any] = {"stop": stop}
    ollama: dict[str, Any] = {"options": {"num_predict": 1, "stop": stop}}
    anthropic: dict[str, Any] = {"stop_sequences": stop}
    if schema is not None:
        openai["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        ollama["format"] = schema
        anthropic["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    yield "/v1/chat/completions", openai | rest
    yield "/api/chat", ollama | rest
    yield "/v1/messages", anthropic | rest
    if schema is None and stop is None:
        yield "/v1/responses", {"input": rest.pop("messages"), "max_output_tokens": 1} | rest


def _tool(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """In the form of all dialects at once."""
    function = {"name": name, "parameters": schema}
    return {"type": "function", "name": name, "input_schema": schema, "function": function}


def _call(arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}


class _Raw(bytes):
    """JSON that is written already."""


def _json(body: dict[str, Any]) -> bytes:
    raw = next(((key, value) for key, value in body.items() if isinstance(value, _Raw)), None)
    if raw is None:
        return json.dumps(body, separators=(",", ": ")).encode()
    rest = json.dumps({key: value for key, value in body.items() if key != raw[0]}).encode()
    return rest[:-1] + b', "%s": ' % raw[0].encode() + raw[1] + b"}"


def _padded(body: dict[str, Any], size: int) -> bytes:
    """Write a body and fill it up with white space: what it costs is compared with the largest size."""
    return _json(body).ljust(size)


def _many_keys(size: int) -> bytes:
    return json.dumps({f"{n:x}": 1 for n in range(size // 12)}).encode()


def _half_surrogates(size: int) -> bytes:
    return b'{"prompt": "' + rb"\ud800" * ((size - 200) // 6) + b'"}'


class Memory:
    """The memory of a process: at rest, and at its peak since `reset`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def reset(self) -> None:
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")  # the peak becomes what is used now

    def bytes(self, what: str) -> int:
        found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{self._pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024


async def cost_of(body: Body, client: httpx2.AsyncClient, pid: int) -> Cost:
    """Raises httpx2.TransportError when the service closes the connection, or answers no health question in time."""
    content = body.make()
    memory = Memory(pid)
    memory.reset()
    before = memory.bytes("VmRSS")
    watch = _Watch(client)
    watching = asyncio.create_task(watch.run())
    await watch.asked.wait()
    started = time.perf_counter()
    response = await client.post(body.path, content=content, headers={"Content-Type": "application/json"})
    seconds = time.perf_counter() - started
    watch.stopping = True
    await watching
    growth = (memory.bytes("VmHWM") - before) / len(content)
    return Cost(body.name, body.path, len(content), response.status_code, seconds, watch.slowest, growth)


class _Watch:
    """Asks /health/live without a pause."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self.asked = asyncio.Event()
        self.slowest = 0.0
        self.stopping = False

    async def run(self) -> None:
        for number in count():
            started = time.perf_counter()
            (await self._client.get("/health/live")).raise_for_status()
            if number:  # the first opens the connection
                self.slowest = max(self.slowest, time.perf_counter() - started)
                self.asked.set()
            if self.stopping and number > 1:
                return
            await asyncio.sleep(0.005)


def faults(cost: Cost, *, slowest: float = SLOWEST, growth: float = GROWTH) -> list[str]:
    found = []
    if cost.slowest_health > slowest:
        found.append(f"{cost.name}, {cost.path}: /health/live took {cost.slowest_health:.2f} s")
    if cost.growth > growth:
        found.append(f"{cost.name}, {cost.path}: memory grew by {cost.growth:.1f} times the body")
    if cost.status in (500, 502, 504):
        found.append(f"{cost.name}, {cost.path}: answered {cost.status}")
    return found


def table(costs: list[Cost]) -> str:
    rows = [
        f"| {c.name} | {c.path} | {c.status} | {c.seconds:.2f} | {c.slowest_health:.3f} | {c.growth:.1f} |"
        for c in costs
    ]
    head = ["| body | route | status | s | slowest /health/live, s | memory, bodies |", "|---|---|--:|--:|--:|--:|"]
    return "\n".join(head + rows)


async def measured(service: ServiceUnderTest) -> list[Cost]:
    host, port = service.api.client.host, service.api.client.port
    costs = []
    async with httpx2.AsyncClient(base_url=f"http://{host}:{port}", timeout=DEADLINE) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        for body in bodies(model):
            costs.append(await cost_of(body, client, service.process.pid))
            print(table(costs[-1:]).splitlines()[-1], file=sys.stderr)
    return costs


async def main(model: Path, report: Path | None) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with running(model, Path(folder), ["Hi"]) as service:
            costs = await measured(service)
    return told(costs, report)


def told(costs: list[Cost], report: Path | None) -> int:
    costs.sort(key=lambda cost: cost.slowest_health, reverse=True)
    print(table(costs))
    if report:
        report.write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")
    broken = [fault for cost in costs for fault in faults(cost)]
    print("\n".join(broken) or f"{len(costs)} bodies: every limit kept")
    return 1 if broken else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(main(given.model, given.json)))
