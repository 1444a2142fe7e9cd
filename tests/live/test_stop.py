"""A stop is a stop: whatever hangs, the vendor's program gets its polite end, and the service ends in time."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests import preloaded
from tests.card_service import free_ports
from tests.hub_server import hub_server, put
from tests.service_process import ServiceProcess, service_process

# The simulator of main_api makes "ended politely" when it is interrupted and no reply runs.
REPO, REVISION = "people/mini", "a" * 40
MANIFEST = (
    f"name: mini\nruntime: llamacpp\nsource: {{repo: {REPO}, revision: {REVISION}}}\nfiles: [{{path: mini.gguf}}]\n"
)
IN_TIME = 30.0  # seconds: ten times what a stop beside a pull that hangs takes
ENDED = (0, 130, -signal.SIGTERM, -signal.SIGINT)  # uvicorn raises the signal once more when all has ended well


@pytest.fixture
def hanging_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    put(
        tmp_path / "hub",
        REPO,
        REVISION,
        {"mini.gguf": bytes(2**20)},
    )
    (tmp_path / "models/manifests").mkdir(parents=True)
    (tmp_path / "models/manifests/mini.yaml").write_text(MANIFEST)
    with hub_server(tmp_path / "hub", "--hang-after", "65536") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
        monkeypatch.setenv("NO_PROXY", "*")
        yield


@pytest.fixture(autouse=True)
def _simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_ENDED", str(tmp_path / "ended politely"))
    monkeypatch.setenv("SIM_PORT", str(free_ports(1)))


@contextmanager
def simulated_card(folder: Path, tokenizer: Path, *flags: str) -> Iterator[ServiceProcess]:
    """Qwen3-4B on a card that is played."""
    place = folder / "state/simulated/qwen3-4b/qwen3_tokenizer"
    place.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, place)
    ports = ("--tokenizer-port", "0", "--runtime-port", os.environ["SIM_PORT"])
    state = ("--state-dir", str(folder / "state"), "--models-dir", str(folder / "models"), "--log-dir", str(folder))
    with service_process("--simulate", "qwen3-4b", *state, *ports, *flags) as service:
        yield service


def pull_lines(service: ServiceProcess) -> Generator[bytes]:
    with httpx.stream("POST", f"{service.url}/api/pull", json={"model": "mini"}, timeout=60) as answer:
        for line in answer.iter_lines():
            yield line.encode()


@pytest.mark.usefixtures("hanging_hub")
@pytest.mark.parametrize("follower", ["stays", "leaves"])
def test_a_pull_that_hangs_keeps_nobody_from_a_polite_end(
    small_tokenizer_folder: Path, tmp_path: Path, follower: str
) -> None:
    with simulated_card(tmp_path, small_tokenizer_folder) as service:
        lines = pull_lines(service)
        seen = [next(lines)]
        while b'"completed":65536' not in seen[-1].replace(b" ", b""):
            seen.append(next(lines))
        rest: list[bytes] = []
        reader = threading.Thread(target=lambda: rest.extend(lines))
        if follower == "stays":
            reader.start()
        else:
            lines.close()
        started = time.monotonic()
        assert service.stop(signal.SIGTERM) in ENDED
        assert time.monotonic() - started < IN_TIME
        if follower == "stays":
            reader.join(IN_TIME)
            assert "stopping" in json.loads(rest[-1])["error"]
        log = service.log.read_text()
    assert "Traceback" not in log
    assert (tmp_path / "ended politely").exists()


def test_a_second_interrupt_cuts_the_reply_and_the_program_still_ends_politely(
    small_tokenizer_folder: Path, tmp_path: Path
) -> None:
    with simulated_card(tmp_path, small_tokenizer_folder, "--grace-time", "600") as service:
        body = {"messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 2000, "stream": True}
        with httpx.stream("POST", f"{service.url}/v1/chat/completions", json=body, timeout=90) as reply:
            lines = reply.iter_lines()
            next(lines)
            service.process.send_signal(signal.SIGINT)
            service.until("going down", lambda: _refuses(service))
            service.process.send_signal(signal.SIGINT)
            assert service.process.wait(IN_TIME) in ENDED
    assert (tmp_path / "ended politely").exists()


def _refuses(service: ServiceProcess) -> bool:
    try:
        httpx.get(f"{service.url}/health/live")
    except httpx.TransportError:
        return True
    return False


def test_a_second_service_with_the_same_state_dir_is_refused_and_told_which_process_has_it(
    small_gguf: Path, tmp_path: Path
) -> None:
    state = ("--state-dir", str(tmp_path / "state"))
    flags = ["--model-path", str(small_gguf), *state]
    with service_process(*flags) as first:
        second = preloaded.run("serve", "--port", "0", *flags, env=os.environ)
        assert second.returncode != 0
        assert f"process {first.process.pid}" in second.stderr
        assert "--state-dir" in second.stderr
        assert "Traceback" not in second.stderr
        assert (tmp_path / "state/admin.sock").is_socket()
        assert httpx.get(f"{first.url}/health/live").status_code == 200
    with service_process(*flags) as third:
        assert third.is_ready()


@pytest.mark.parametrize("grace", ["0", "0.5"])
def test_a_grace_time_below_a_second_is_what_it_says(small_gguf: Path, grace: str) -> None:
    flags = ("--model-path", str(small_gguf), "--context-size", "8192")
    with service_process(*flags, "--grace-time", grace) as service:
        body = {"messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 8000, "stream": True}
        body["logit_bias"] = {"2": -100}
        with httpx.stream("POST", f"{service.url}/v1/chat/completions", json=body, timeout=90) as reply:
            lines = reply.iter_lines()
            next(lines)
            service.process.send_signal(signal.SIGTERM)
            seen = list(lines)
        assert "data: [DONE]" not in seen
        assert '"code":"shutting_down"' in "".join(seen)
        assert service.process.wait(60) in ENDED
