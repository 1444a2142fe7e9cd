"""Qwen2.5 through the REPL runtime: what the service adds to each token, and how soon a client that left is noticed.

    python -m bench.ax_repl TOKENIZER_FOLDER [--step-ms 5] [--tokens 900] [--rounds 3]

The simulator of the vendor's program stands for the card, with --step-ms per token. It is driven by hand first: a line
on stdin, an http.server that answers as little as it accepts. Then by the whole service, over HTTP: `serve --simulate`.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.load.processes import resident_mb

ROOT = Path(__file__).resolve().parent.parent
MODEL = "qwen2.5-1.5b-instruct"
PROMPT_TOKENS = 8


class LeastTokenizer(BaseHTTPRequestHandler):
    """Notes when each batch of three came."""

    batches: list[float]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer({"bos_id": -1, "eos_id": 151645})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.batches.append(time.perf_counter())
        self.answer({"token_ids": list(range(100, 100 + PROMPT_TOKENS)), "text": ""})

    def answer(self, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def per_token_by_hand(environment: dict[str, str], tokens: int) -> float:
    """Seconds; the context ends the reply."""
    LeastTokenizer.batches = []
    with ThreadingHTTPServer(("127.0.0.1", 0), LeastTokenizer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        command = [
            str(ROOT / "qwen_service" / "simulators" / "main_axcl"),
            "--filename_tokenizer_model",
            url,
            "--prompt",
            "",
        ]
        context = {"SIM_CONTEXT": str(tokens + PROMPT_TOKENS)}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment | context
        ) as program:
            assert program.stdin
            program.stdin.write(b"key\nq\n")
            program.stdin.flush()
            program.wait()
        server.shutdown()
    batches = LeastTokenizer.batches[1:-1]  # without the prompt and the whole reply
    return (batches[-1] - batches[0]) / (3 * (len(batches) - 1))


def request(port: int, max_tokens: int) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    body = {"stream": True, "max_tokens": max_tokens, "messages": [{"role": "user", "content": "hello"}]}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    return connection, response


def per_token_by_service(port: int, tokens: int) -> float:
    connection, response = request(port, tokens)
    times = [time.perf_counter() for line in iter(response.readline, b"") if b'"content"' in line]
    connection.close()
    return (times[-1] - times[1]) / (tokens - 6)  # from the first whole batch to the last one


def health(port: int) -> dict[str, dict[str, dict[str, int]]]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/health")
    answer: dict[str, dict[str, dict[str, int]]] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def seconds_to_notice(port: int) -> float:
    """From a client's leaving in mid-reply to the end of the generation."""
    connection, response = request(port, 800)
    for _ in range(6):
        response.readline()
    left = time.perf_counter()
    assert isinstance(connection.sock, socket.socket)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    while health(port)["details"]["queue"]["running"]:
        time.sleep(0.001)
    return time.perf_counter() - left


@contextlib.contextmanager
def service(tokenizer: Path, environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    """Its port and process id."""
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        target = Path(scratch) / "simulated" / MODEL / "qwen2.5_tokenizer"
        target.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / name, target)
        command = [sys.executable, "-m", "qwen_service", "serve", "--simulate", MODEL, "--port", str(port),
                   "--host", "127.0.0.1", "--state-dir", scratch, "--models-dir", scratch, "--log-dir", scratch,
                   "--tokenizer-port", "0"]  # fmt: skip
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                wait_until_ready(port)
                yield port, process.pid
            finally:
                process.terminate()


def wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, KeyError, TypeError):
            if health(port)["details"]["model"]["state"] == "ready":  # type: ignore[comparison-overlap]  # loose JSON
                return
        time.sleep(0.1)
    raise SystemExit("the service did not come up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="with tokenizer.json and tokenizer_config.json")
    parser.add_argument("--step-ms", type=float, default=5)
    parser.add_argument("--tokens", type=int, default=900)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    environment = {**os.environ, "SIM_TOKEN_MS": str(options.step_ms), "SIM_REPLY": "endless"}
    by_hand, by_service = [], []
    with service(options.folder, environment) as (port, pid):
        for _ in range(options.rounds):  # in turns, so that a busy machine is unfair to both
            by_hand.append(per_token_by_hand(environment, options.tokens) * 1000)
            by_service.append(per_token_by_service(port, options.tokens) * 1000)
        left = sorted(seconds_to_notice(port) * 1000 for _ in range(20))
        print(
            f"step {options.step_ms:g} ms, {options.tokens} tokens, {options.rounds} rounds; service {resident_mb(pid):.0f} MB"
        )
    added = statistics.median(mine - plain for mine, plain in zip(by_service, by_hand, strict=True))
    print(f"per token by hand    : {statistics.median(by_hand):.3f} ms")
    print(f"per token by service : {statistics.median(by_service):.3f} ms, {added:+.3f} ms")
    print(f"client left to idle  : median {statistics.median(left):.1f} ms, slowest {left[-1]:.1f} ms")


if __name__ == "__main__":
    main()
