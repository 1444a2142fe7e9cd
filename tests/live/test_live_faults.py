"""What happens to requests when the engine or the service does not go on: seen from outside, with the real model."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service_process import ServiceProcess, is_alive, service_process

ENDED = (0, -signal.SIGTERM)  # uvicorn raises the signal once more when all has ended well
STORY = {"messages": [{"role": "user", "content": "Write a long story about the sea."}]}


@pytest.fixture(scope="module")
def service(smollm2: Path) -> Iterator[ServiceProcess]:
    limits = ("--slots", "1", "--queue-size", "2", "--stall-timeout", "5", "--context-size", "512")
    with service_process("--model-path", str(smollm2), *limits) as running:
        yield running


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def ask(service: ServiceProcess, max_tokens: int = 3, **fields: Any) -> httpx.Response:
    body = {**STORY, "max_tokens": max_tokens, **fields}
    return httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=90)


def queue(service: ServiceProcess) -> tuple[int, int]:
    shown = service.health()["details"]["queue"]
    return shown["running"], shown["waiting"]


def test_who_comes_when_the_line_is_full_is_sent_away_and_the_others_are_served(
    service: ServiceProcess, threads: ThreadPoolExecutor
) -> None:
    long = threads.submit(ask, service, 150)
    service.until("the long reply", lambda: queue(service) == (1, 0))
    waiting = [threads.submit(ask, service) for _ in range(2)]
    service.until("the line", lambda: queue(service) == (1, 2))
    refused = ask(service)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    assert [reply.result().status_code for reply in (long, *waiting)] == [200, 200, 200]


def test_who_waits_while_the_engine_is_killed_is_served_by_the_next_one(
    service: ServiceProcess, threads: ThreadPoolExecutor
) -> None:
    (worker,) = service.workers()
    long = threads.submit(ask, service, 400)
    service.until("the long reply", lambda: queue(service) == (1, 0))
    waiting = [threads.submit(ask, service) for _ in range(2)]
    service.until("the line", lambda: queue(service) == (1, 2))
    os.kill(worker, signal.SIGKILL)
    assert long.result().status_code == 502
    assert [reply.result().status_code for reply in waiting] == [200, 200]


def test_an_engine_that_stalls_is_replaced(service: ServiceProcess, threads: ThreadPoolExecutor) -> None:
    (worker,) = service.workers()
    long = threads.submit(ask, service, 400)
    service.until("the long reply", lambda: queue(service) == (1, 0))
    os.kill(worker, signal.SIGSTOP)
    reply = long.result()
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "engine_stalled")
    assert ask(service).status_code == 200
    assert not is_alive(worker)


def test_a_stall_in_a_stream_is_told_in_the_stream(service: ServiceProcess) -> None:
    (worker,) = service.workers()
    body = {**STORY, "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{service.url}/v1/chat/completions", json=body, timeout=90) as reply:
        lines = reply.iter_lines()
        next(lines)
        os.kill(worker, signal.SIGSTOP)
        rest = "\n".join(lines)
    assert '"code":"engine_stalled"' in rest
    assert "[DONE]" not in rest
    assert ask(service).status_code == 200


def test_a_reply_that_runs_when_the_service_is_told_to_end_is_finished(small_gguf: Path) -> None:
    with service_process("--model-path", str(small_gguf), "--grace-time", "60") as service:
        body = {**STORY, "max_tokens": 60, "stream": True}
        with httpx.stream("POST", f"{service.url}/v1/chat/completions", json=body, timeout=90) as reply:
            lines = reply.iter_lines()
            next(lines)
            service.process.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(lines)
        assert service.process.wait(60) in ENDED


def test_a_reply_that_takes_longer_than_the_grace_time_is_cut_without_a_clean_end(small_gguf: Path) -> None:
    flags = ("--model-path", str(small_gguf), "--context-size", "8192")
    with service_process(*flags, "--grace-time", "1") as service:
        body = {**STORY, "max_tokens": 8000, "stream": True, "logit_bias": {"2": -100}}
        with httpx.stream("POST", f"{service.url}/v1/chat/completions", json=body, timeout=90) as reply:
            lines = reply.iter_lines()
            next(lines)
            service.process.send_signal(signal.SIGTERM)
            seen = list(lines)
        assert '"code":"shutting_down"' in seen[-1] or '"code":"shutting_down"' in seen[-2]
        assert "data: [DONE]" not in seen
        assert "Traceback" not in service.log.read_text()
        assert service.process.wait(60) in ENDED
