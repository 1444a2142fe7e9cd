"""The service as systemd would run it, with systemd's end of the socket in our hands."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unit(tmp_path: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        folders = ["--models-dir", str(tmp_path / "models"), "--state-dir", str(tmp_path / "run")]
        argv = [sys.executable, "-m", "qwen_service", "serve", "--port", "0", *folders, *flags]
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                yield process, manager
            finally:
                process.terminate()


def said_until(manager: socket.socket, word: bytes) -> list[bytes]:
    said = [manager.recv(4096)]
    while word not in said[-1]:
        said.append(manager.recv(4096))
    return said


def test_the_unit_is_ready_when_the_model_answers_then_alive_then_stopping(tmp_path: Path, small_gguf: Path) -> None:
    with unit(tmp_path, "--model-path", str(small_gguf), "--context-size", "256", "--slots", "1") as (process, manager):
        until_ready = said_until(manager, b"READY=1")
        assert any(b"loading" in word and b"EXTEND_TIMEOUT_USEC=60000000" in word for word in until_ready)
        assert until_ready[-1].startswith(b"READY=1\nSTATUS=smollm2-135m-instruct.q4_1: ready")
        assert said_until(manager, b"WATCHDOG=1")
        process.terminate()
        assert b"STATUS=stopping" in said_until(manager, b"STOPPING=1")[-1]
        assert process.wait(60) in (0, -signal.SIGTERM)  # both are a clean end for systemd


def test_without_any_model_the_unit_is_ready_and_says_what_is_missing(tmp_path: Path) -> None:
    with unit(tmp_path) as (_, manager):
        assert b"pull" in said_until(manager, b"READY=1")[-1]
