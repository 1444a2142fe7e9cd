"""Fixtures: servers of known timing (tests/simulators/timed_server), and the command as a user runs it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

SIMULATOR = Path(__file__).parent.parent / "simulators" / "timed_server"
StartServer = Callable[..., str]


@pytest.fixture
def timed_server() -> Iterator[StartServer]:
    """timed_server(ttft_ms=100, ...) starts one and returns its address."""
    with ExitStack() as stack:

        def start(**options: object) -> str:
            flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
            process = stack.enter_context(subprocess.Popen([sys.executable, SIMULATOR, *flags], stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            return f"http://127.0.0.1:{int(process.stdout.readline())}"

        yield start


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.load", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
