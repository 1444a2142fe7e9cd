"""The tokenizer server as the vendor's programs see it: latency of /decode, idle and while the service works.

    python -m bench.tokenizer_server TOKENIZER_FOLDER [--calls 20000] [--vendor PYTHON]

A host process runs the real service (its engine is a script) and the tokenizer server beside it. Calls are made as the
programs make them, one new connection each; and as newer builds do, keep-alive, headers and body in two writes, with
Nagle's algorithm on. Load: 8 streams of 100 tokens per second each, and bodies of 1 MB one after the other. With --vendor, a
Python that has `transformers`, a server like the one that comes with the models is measured in the same run.
"""

import argparse
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.load.processes import resident_mb

IDS = [14990, 1879, 0]
BODY = json.dumps({"token_ids": IDS}).encode()
HEAD = b"POST /decode HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(
    BODY
)
STREAMS = 8


@dataclass(frozen=True)
class Latencies:
    seconds: list[float]

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000 for part in (0.5, 0.99, 1.0)]
        return f"median {at[0]:6.2f} ms, p99 {at[1]:7.2f} ms, slowest {at[2]:7.2f} ms, {len(ordered)} calls"


def on_new_connections(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(HEAD + b"Connection: close\r\n\r\n" + BODY)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert b" 200 " in answer, answer


class KeepAlive:
    """As cpp-httplib: a connection is used again unless the server closes it; two writes; Nagle's algorithm on."""

    def __init__(self) -> None:
        self._connection: socket.socket | None = None

    def __call__(self, port: int) -> None:
        connection = self._connection or socket.create_connection(("127.0.0.1", port))
        connection.sendall(HEAD + b"\r\n")
        connection.sendall(BODY)
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        response.read()
        self._connection = None if response.will_close else connection
        if response.will_close:
            connection.close()


def measure(call: Callable[[int], None], port: int, calls: int) -> Latencies:
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        call(port)
        seconds.append(time.perf_counter() - started)
    return Latencies(seconds)


@contextlib.contextmanager
def host(argv: list[str]) -> Iterator[tuple[dict[str, int], float, int]]:
    """Its ports, how long it took to start, and its process id."""
    started = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout
            ports = json.loads(process.stdout.readline())
            yield ports, time.perf_counter() - started, process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def load(port: int) -> Iterator[list[int]]:
    """Yields what was done: [events streamed, bodies of 1 MB answered]."""
    ended, done = threading.Event(), [0, 0]
    workers = [threading.Thread(target=stream, args=(port, ended, done)) for _ in range(STREAMS)]
    workers.append(threading.Thread(target=post_large_bodies, args=(port, ended, done)))
    for worker in workers:
        worker.start()
    try:
        yield done
    finally:
        ended.set()
        for worker in workers:
            worker.join()


def chat(port: int, content: str, *, stream: bool) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = json.dumps({"model": "bench", "stream": stream, "messages": [{"role": "user", "content": content}]})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection.getresponse()


def stream(port: int, ended: threading.Event, done: list[int]) -> None:
    while not ended.is_set():
        with chat(port, "hello", stream=True) as response:
            assert response.status == 200, response.read()
            while not ended.is_set() and response.readline():
                done[0] += 1


def post_large_bodies(port: int, ended: threading.Event, done: list[int]) -> None:
    while not ended.is_set():
        with chat(port, "some words " * 90_000, stream=False) as response:
            response.read()
        done[1] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="with tokenizer.json and tokenizer_config.json")
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--vendor", help="a Python that has transformers")
    options = parser.parse_args()
    with host([sys.executable, "-m", "bench.tokenizer_bench_host", str(options.folder)]) as (ports, seconds, pid):
        port = ports["tokenizer"]
        time.sleep(2)  # the service loads its scripted engine
        print(f"service with tokenizer server: up after {seconds:.1f} s, {resident_mb(pid):.0f} MB")
        print("  idle, new connections :", measure(on_new_connections, port, options.calls))
        print("  idle, keep-alive      :", measure(KeepAlive(), port, options.calls // 10))
        with load(ports["api"]) as done:
            time.sleep(1)
            print("  busy, new connections :", measure(on_new_connections, port, options.calls))
            print("  busy, keep-alive      :", measure(KeepAlive(), port, options.calls // 10))
        print(
            f"  meanwhile: {done[0]} lines streamed to {STREAMS} clients, {done[1]} bodies of 1 MB; {resident_mb(pid):.0f} MB"
        )
    if options.vendor is None:
        print("server as the vendor ships it: not measured (no --vendor)")
        return
    script = str(Path(__file__).with_name("transformers_tokenizer.py"))
    with host([options.vendor, script, str(options.folder)]) as (ports, seconds, pid):
        print(f"transformers + http.server: up after {seconds:.1f} s, {resident_mb(pid):.0f} MB")
        print("  idle, new connections :", measure(on_new_connections, ports["tokenizer"], options.calls))
        print("  idle, keep-alive      :", measure(KeepAlive(), ports["tokenizer"], min(200, options.calls)))


if __name__ == "__main__":
    main()
