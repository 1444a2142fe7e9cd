"""What connections that mean harm get from the service: python -m bench.hostile_connections [--connections N] [--json FILE]

Starts the service with a file of API keys, as a user starts it, and connects to it without a key, on the address
that is given (--host; one that is not loopback shows the bound on connections of one address as well). Then:

- resets: each connection sends a whole or a cut request to some route, and resets at a random moment. A client that has
  reset before it is accepted has no address.
- half heads: connections that send half a head and wait.

Admitted is each request that got past the keys, by the service's own metrics. Ends with 1 if there is one, if the service
has ended, or if a half head was not closed. Further arguments are for `serve`: --model-path FILE.gguf.
"""

import argparse
import asyncio
import json
import re
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx2

from qwen_service.api.keys import new_key
from qwen_service.process.child import ChildProcess

REFUSED = {"400", "401", "403"}
ABRUPTLY = struct.pack("ii", 1, 0)  # SO_LINGER 0: close() sends a reset
BODY = (
    b'{"model": "smollm2-135m", "name": "smollm2-135m", "level": "debug", "what": "model", "prompt": "Hi", "input": "Hi",'
    b' "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}'
)
BODIES = (BODY, b"{}", b'{"level": "debug"}', b'{"model": "smollm2-135m"}')
READY = 120.0  # seconds


@dataclass
class Report:
    connections: int = 0
    operations: int = 0
    statuses: dict[str, int] = field(default_factory=dict)  # of requests whose head arrived, by the service's metrics
    admitted: list[str] = field(default_factory=list)
    still_runs: bool = False
    half_heads: int = 0
    health_beside_half_heads: list[float] = field(default_factory=list)  # seconds, from this machine
    answered_503: int = 0  # half heads beyond max_connections_per_client
    answered_408: int = 0  # half heads, after head_timeout
    last_half_head_closed: float = 0.0  # seconds after the first

    def lines(self) -> list[str]:
        slowest = max(self.health_beside_half_heads, default=0.0)
        return [
            f"{self.connections} connections that reset, {self.operations} operations: "
            + (f"{len(self.admitted)} admitted" if self.still_runs else "somebody was admitted, the service HAS ENDED"),
            "statuses of those that arrived: " + ", ".join(f"{s} x {n}" for s, n in sorted(self.statuses.items())),
            f"{self.half_heads} half heads: {self.answered_503} answered 503, {self.answered_408} answered 408,"
            f" the last closed after {self.last_half_head_closed:.1f} s; slowest /health/live beside them {slowest:.3f} s",
            *self.admitted,
        ]

    @property
    def holds(self) -> bool:
        closed = self.answered_503 + self.answered_408 == self.half_heads
        return not self.admitted and self.still_runs and closed and len(self.health_beside_half_heads) > 0


@dataclass(frozen=True)
class Victim:
    process: ChildProcess
    host: str
    port: int
    key: str

    def client(self) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=60)


class _Output:
    """The service's log, until it says where it listens."""

    def __init__(self) -> None:
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.seen = b""

    def __call__(self, data: bytes) -> None:
        self.seen += data
        found = re.search(rb"listening on http://[^ ]*?:(\d+)\b", self.seen)
        if found and not self.port.done():
            self.port.set_result(int(found[1]))


@asynccontextmanager
async def victim(folder: Path, host: str, arguments: Sequence[str]) -> AsyncIterator[Victim]:
    key, line = new_key("owner")
    (folder / "keys").write_text(line + "\n")
    command = [sys.executable, "-m", "qwen_service", "serve", "--host", "0.0.0.0", "--port", "0",
               "--api-keys-file", str(folder / "keys"), "--state-dir", str(folder / "state"),
               "--log-dir", str(folder / "logs"), *arguments]  # fmt: skip
    output = _Output()
    process = await ChildProcess.start(command, name="service", on_output=output)
    try:
        yield Victim(process, host, await asyncio.wait_for(output.port, READY), key)
    finally:
        await process.stop(grace=20)


async def operations(client: httpx2.AsyncClient) -> list[tuple[str, str]]:
    """All of the API's description, but what is open to everybody."""
    paths: dict[str, dict[str, Any]] = (await client.get("/openapi.json")).json()["paths"]
    found = [(method.upper(), re.sub(r"\{\w+\}", "x", path)) for path, methods in paths.items() for method in methods]
    return sorted((method, path) for method, path in found if not path.startswith("/health"))


async def resets(target: Victim, report: Report, random: Random, connections: int) -> None:
    async with target.client() as client:
        offered = await operations(client)
        report.connections, report.operations = connections, len(offered)
        before = await _statuses(client)
        before["/metrics", "200"] += 1  # that question itself
        for number in range(connections):
            method, path = offered[number % len(offered)]
            try:
                await asyncio.to_thread(_send_and_reset, target, random, method, path)
            except ConnectionRefusedError:  # nobody listens any more
                break
        report.still_runs = await _is_at_rest(client)
        seen = await _statuses(client) if report.still_runs else Counter()
    for (path, status), count in (seen - before).items():
        if path.startswith("/health"):  # open to everybody, and asked by this program
            continue
        report.statuses[status] = report.statuses.get(status, 0) + count
        if status not in REFUSED:
            report.admitted.append(f"{count} x {path}: {status}")


def _send_and_reset(target: Victim, random: Random, method: str, path: str) -> None:
    body = random.choice(BODIES)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    whole = random.random() < 0.7
    with socket.create_connection((target.host, target.port), timeout=30) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABRUPTLY)
        connection.sendall(request if whole else request[: random.randrange(len(request))])
        if random.random() < 0.5:  # the other half resets before the service can accept
            time.sleep(random.expovariate(200))


async def _statuses(client: httpx2.AsyncClient) -> Counter[tuple[str, str]]:
    text = (await client.get("/metrics")).text
    lines = re.findall(r"^qwen_requests_total\{(.*)\} ([\d.e+]+)$", text, re.MULTILINE)
    counted: Counter[tuple[str, str]] = Counter()
    for labels, count in lines:
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        counted[named.get("route", ""), named["status"]] += int(float(count))
    return counted


async def _is_at_rest(client: httpx2.AsyncClient) -> bool:
    """False if the service does not answer any more."""
    try:
        async with asyncio.timeout(60):
            while True:
                queue = (await client.get("/health")).json()["details"]["queue"]
                if (queue["running"], queue["waiting"]) == (0, 0):
                    return True
                await asyncio.sleep(0.1)
    except (httpx2.TransportError, TimeoutError):
        return False


async def half_heads(target: Victim, report: Report, connections: int) -> None:
    report.half_heads = connections
    started = time.perf_counter()
    waiting = [asyncio.create_task(_half_head(target)) for _ in range(connections)]
    async with target.client() as client:
        while not all(task.done() for task in waiting):
            asked = time.perf_counter()
            if (await client.get("/health/live")).status_code == 200:
                report.health_beside_half_heads.append(time.perf_counter() - asked)
            await asyncio.wait(waiting, timeout=0.5)
    report.last_half_head_closed = time.perf_counter() - started
    answers = [await task for task in waiting]
    report.answered_503 = sum(answer.startswith(b"HTTP/1.1 503 ") for answer in answers)
    report.answered_408 = sum(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)


async def _half_head(target: Victim) -> bytes:
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc")
        return await reader.read()
    except ConnectionResetError:  # refused while these bytes were on their way
        return b"HTTP/1.1 503 "
    finally:
        writer.close()


async def run(host: str, connections: int, heads: int, seed: int, arguments: Sequence[str]) -> Report:
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        async with victim(Path(folder), host, arguments) as target:
            await resets(target, report, Random(seed), connections)
            if report.still_runs:
                await half_heads(target, report, heads)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address of this machine to connect to")
    parser.add_argument("--connections", type=int, default=500, help="that reset")
    parser.add_argument("--half-heads", type=int, default=900)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--json", type=Path)
    options, arguments = parser.parse_known_args()
    report = asyncio.run(run(options.host, options.connections, options.half_heads, options.seed, arguments))
    print("\n".join(report.lines()))
    if options.json:
        options.json.write_text(json.dumps({**asdict(report), "holds": report.holds}, indent=2))
    sys.exit(0 if report.holds else 1)


if __name__ == "__main__":
    main()
