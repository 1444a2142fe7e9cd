"""`qwen-service cluster` as an owner types it: two nodes of Ray in this machine, each with a simulated card."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from qwen_service.cluster.ray_command import MARK, PORTS
from qwen_service.process.marked import end_marked, marked
from tests import ROOT, preloaded
from tests.card_service import CardHost, free_ports

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

MODEL = "qwen3-4b-here"


@dataclass
class Owner:
    """Two machines of one owner: `pi1` and `pi2` are the state folders of the two, all else they share."""

    folder: Path
    host: CardHost
    ports: int = field(default_factory=lambda: free_ports(2 * PORTS + 8))

    @property
    def http(self) -> int:
        return self.ports + 2 * PORTS

    @property
    def token(self) -> Path:
        return self.folder / ".ray" / "auth_token"

    def state(self, machine: str) -> Path:
        return self.folder / machine

    def types(self, machine: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        number = int(machine[-1])
        environment = {
            **os.environ,
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "QWEN_CONFIG": str(ROOT / "config.yaml"),
            "QWEN_STATE_DIR": str(self.state(machine)),
            "QWEN_MODELS_DIR": str(self.host.models),
            "QWEN_NPU_POLL_INTERVAL": "0",
            "QWEN_RUNTIME_PORT": str(self.http + 2 * number),
            "QWEN_TOKENIZER_PORT": str(self.http + 2 * number + 1),
            "SIM_REPLY": json.dumps([1000, 1001, 1002]),
            "SIM_STEP": "0.01",
            "SIM_TOKEN": "0.01",
        }
        return preloaded.run("cluster", *arguments, env=environment, timeout=200)

    def status(self, machine: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.types(machine, "status", "--json").stdout)
        return document


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_folder: Path) -> Iterator[Owner]:
    folder = tmp_path_factory.mktemp("o")
    host = CardHost(folder / "host", small_tokenizer_folder)
    host.install(MODEL)
    owner = Owner(folder, host)
    yield owner
    for machine in ("pi1", "pi2"):
        end_marked(MARK, str(owner.state(machine)))


@pytest.fixture(scope="module")
def head(owner: Owner) -> str:
    run = owner.types("pi1", "start", "--head", "--address", "127.0.0.1", "--cards", "1", "--port", str(owner.ports))
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def deployed(owner: Owner, head: str) -> str:
    first = f"127.0.0.1:{owner.ports}"
    second = ("--address", "127.0.0.1", "--cards", "1", "--port", str(owner.ports + PORTS))
    joined = owner.types("pi2", "start", "--join", first, *second)
    assert joined.returncode == 0, joined.stderr
    file = owner.folder / "cluster.yaml"
    file.write_text(yaml.safe_dump({"model": MODEL, "port": owner.http, "report_period": 0.2, "longest_reply": 5}))
    run = owner.types("pi1", "deploy", str(file))
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_head_tells_its_command_and_what_comes_next_and_keeps_the_token_to_itself(owner: Owner, head: str) -> None:
    assert f"ray start --head --port {owner.ports}" in head
    assert f"cluster start --join 127.0.0.1:{owner.ports}`" in head
    assert stat.S_IMODE(owner.token.stat().st_mode) == 0o600
    secret = owner.token.read_text()
    logs = [
        path for path in owner.state("pi1").rglob("*") if path.is_file() and path.suffix in (".log", ".out", ".err")
    ]
    assert logs
    assert [path for path in logs if secret in path.read_text(errors="replace")] == []
    assert secret not in head


def test_nobody_gets_in_without_the_token(owner: Owner, head: str) -> None:
    asks = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
    stranger = subprocess.run(
        [sys.executable, "-c", asks, f"127.0.0.1:{owner.ports}"],
        env={
            **os.environ,
            "HOME": str(owner.folder / "stranger"),
            "RAY_AUTH_MODE": "disabled",
            "RAY_NUM_REDIS_GET_RETRIES": "2",
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert stranger.returncode == 1
    assert "AuthenticationError" in stranger.stderr


def test_two_machines_answer_at_one_address(owner: Owner, deployed: str) -> None:
    assert f"answers at http://127.0.0.1:{owner.http}" in deployed
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    answer = httpx.post(f"http://127.0.0.1:{owner.http}/v1/chat/completions", json=body, timeout=100)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 3


def test_the_status_shows_each_card_from_either_machine(owner: Owner, deployed: str) -> None:
    document = owner.status("pi2")
    assert document["faults"] == []
    assert [(card["model"], card["state"]) for card in document["cards"]] == [(MODEL, "ready")] * 2
    assert {node["cards"] for node in document["nodes"]} == {1}
    assert all(MODEL in node["models"] for node in document["nodes"])
    table = owner.types("pi1", "status").stdout
    assert table.splitlines()[0].split() == ["NODE", "CARD", "MODEL", "STATE", "CACHE", "TOKENS/S", "TEMP"]
    assert table.count(MODEL) == 2


def test_a_second_start_and_an_unknown_model_are_refused(owner: Owner, deployed: str) -> None:
    again = owner.types("pi2", "start", "--join", f"127.0.0.1:{owner.ports}", "--cards", "1")
    assert again.returncode == 1
    assert "is already a node" in again.stderr
    pull = owner.types("pi1", "pull", "no-such-model")
    assert pull.returncode == 1
    assert "no-such-model" in pull.stderr


def test_a_machine_that_stops_is_gone_for_the_others_and_leaves_no_process(owner: Owner, deployed: str) -> None:
    assert owner.types("pi2", "stop").returncode == 0
    assert marked(MARK, str(owner.state("pi2"))) == set()
    assert any("is gone" in fault for fault in owner.status("pi1")["faults"])
    assert owner.types("pi1", "stop").returncode == 0
    assert marked(MARK, str(owner.state("pi1"))) == set()
    assert "is no node of a cluster" in owner.types("pi1", "status").stderr
