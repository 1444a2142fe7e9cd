"""The service, started as a user starts it, with its two routes: our API, and the engine's own on its socket."""

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load.http_client import HttpClient
from bench.load.processes import resident_mb
from bench.raw_client import Target
from qwen_service.process.child import ChildProcess
from qwen_service.runtimes.local_http import LocalHttp

DEADLINE = 120.0  # seconds for the service to become ready


@dataclass(frozen=True)
class ServiceUnderTest:
    process: ChildProcess
    api: Target
    engine: Target
    first_health: float  # seconds from exec to any answer of /health
    ready: float  # seconds from exec until a prompt is taken

    def cpu_seconds(self) -> float:
        """Used so far, by all threads."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def rss_mb(self) -> float:
        return resident_mb(self.process.pid)


@asynccontextmanager
async def running(model_path: Path, state_dir: Path, questions: Sequence[str]) -> AsyncIterator[ServiceUnderTest]:
    output = _Output()
    command = [sys.executable, "-m", "qwen_service", "serve", "--host", "127.0.0.1", "--port", "0"]
    options = ["--model-path", str(model_path), "--state-dir", str(state_dir)]
    started = time.perf_counter()
    process = await ChildProcess.start([*command, *options], name="service", on_output=output)
    try:
        address = ("127.0.0.1", await asyncio.wait_for(output.port, DEADLINE))
        await _until_answered(address, b"HTTP/1.1 ")
        first_health = time.perf_counter() - started
        await _until_answered(address, b'"ok"')
        ready = time.perf_counter() - started
        engine, api = await _targets(_engines_socket(state_dir), address, questions)
        yield ServiceUnderTest(process, api, engine, first_health, ready)
    finally:
        await process.stop(grace=20)


def _engines_socket(state_dir: Path) -> Path:
    (socket,) = state_dir.glob("llamacpp-*/engine.sock")
    return socket


class _Output:
    """Its log, until it says where it listens."""

    def __init__(self) -> None:
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._seen = b""

    def __call__(self, data: bytes) -> None:
        self._seen += data
        found = re.search(rb"listening on http://127\.0\.0\.1:(\d+)", self._seen)
        if found and not self.port.done():
            self.port.set_result(int(found[1]))


async def _targets(socket: Path, address: tuple[str, int], questions: Sequence[str]) -> tuple[Target, Target]:
    http = LocalHttp(socket)
    end_token = (await http.get("/props", DEADLINE))["eos_token"]
    end = (await http.post("/tokenize", {"content": end_token, "parse_special": True}, DEADLINE))["tokens"][0]
    prompts = {
        question: (await http.post("/apply-template", {"messages": _messages(question)}, DEADLINE))["prompt"]
        for question in questions
    }

    def for_engine(question: str, max_tokens: int) -> dict[str, Any]:
        common = {"prompt": prompts[question], "n_predict": max_tokens, "temperature": 0, "stream": True}
        return {**common, "logit_bias": [[end, -100]]}

    def for_api(question: str, max_tokens: int) -> dict[str, Any]:
        common = {"messages": _messages(question), "max_tokens": max_tokens, "temperature": 0, "stream": True}
        return {**common, "logit_bias": {str(end): -100}, "stream_options": {"include_usage": True}}

    to_engine = HttpClient("http://localhost", {}, timeout=DEADLINE, socket=str(socket))
    to_api = HttpClient(f"http://{address[0]}:{address[1]}", {}, timeout=DEADLINE)
    count, usage = re.compile(rb'"tokens_predicted":(\d+)'), re.compile(rb'"completion_tokens":(\d+)')
    engine = Target("engine", "/completion", to_engine, for_engine, count)
    return engine, Target("service", "/v1/chat/completions", to_api, for_api, usage)


def _messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


async def _until_answered(address: tuple[str, int], needle: bytes) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            if needle in await _health(address):
                return
            await asyncio.sleep(0.02)


async def _health(address: tuple[str, int]) -> bytes:
    try:
        reader, writer = await asyncio.open_connection(*address)
    except ConnectionRefusedError:  # not listening yet
        return b""
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer
