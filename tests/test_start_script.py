"""scripts/start_qwen.sh -d and stop_qwen.sh, as an owner uses them; the environment has been set up already."""

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import ROOT
from tests.card_service import free_ports

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    venv = tmp_path / "a venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (venv / "bin/python").chmod(0o755)
    pinned = b"".join(
        (ROOT / name).read_bytes() for name in ("requirements.txt", "requirements-ray.txt", "requirements-dev.txt")
    )
    (venv / ".installed-requirements.txt").write_text(hashlib.sha256(pinned).hexdigest()[:16])
    env = {**os.environ, "QWEN_VENV": str(venv), "QWEN_STATE_DIR": str(tmp_path / "state")}

    def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        argv = [str(ROOT / "scripts" / script), *arguments]
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)

    yield run
    run("stop_qwen.sh")


def test_a_checkout_has_the_command_that_the_documentation_writes(run: Run, tmp_path: Path) -> None:
    assert run("setup.sh").returncode == 0
    command = tmp_path / "elsewhere/qwen-service"
    command.parent.mkdir()
    command.symlink_to(tmp_path / "a venv/bin/qwen-service")
    done = subprocess.run([command, "list", "--all"], cwd=command.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, "qwen2.5-0.5b-instruct" in done.stdout) == (0, True), done.stderr


@pytest.fixture
def flags(small_gguf: Path) -> list[str]:
    return ["-d", "--model-path", str(small_gguf), "--port", str(free_ports(1))]


def test_it_starts_once_and_stops_once(run: Run, flags: list[str]) -> None:
    started = run("start_qwen.sh", *flags)
    assert started.stdout.startswith("qwen-service runs with PID"), started.stderr
    again = run("start_qwen.sh", *flags)
    assert (again.returncode, "already running with PID" in again.stderr) == (1, True)
    assert "stopped PID" in run("stop_qwen.sh").stdout
    assert "nothing to stop" in run("stop_qwen.sh").stdout


def test_a_service_that_cannot_start_is_told_although_an_earlier_one_could(run: Run, flags: list[str]) -> None:
    assert run("start_qwen.sh", *flags).returncode == 0
    run("stop_qwen.sh")
    with socket.create_server(("127.0.0.1", int(flags[-1]))):
        refused = run("start_qwen.sh", *flags)
    assert refused.returncode == 1
    assert f"Another program has port {flags[-1]}" in refused.stderr


def test_a_process_that_got_the_number_of_an_old_service_is_not_taken_for_it(
    run: Run, flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/start_qwen.pid").write_text(f"{os.getpid()} 12345\n")
    assert "is not running any more" in run("stop_qwen.sh").stdout
    (tmp_path / "state/start_qwen.pid").write_text(f"{os.getpid()} 12345\n")
    assert run("start_qwen.sh", *flags).returncode == 0


def test_where_it_listens_and_that_no_model_is_there_are_told(run: Run, flags: list[str], tmp_path: Path) -> None:
    started = run("start_qwen.sh", "-d", "--models-dir", str(tmp_path / "models"), *flags[-2:])
    assert f"listening on http://127.0.0.1:{flags[-1]}" in started.stdout
    assert "no model that chats is installed" in started.stderr
