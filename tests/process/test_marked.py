import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_service.process.marked import end_marked, marked

MARK = "QWEN_TEST_MARK"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
BARE = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], env={}, start_new_session=True); print(flush=True); time.sleep(60)"
CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True); print(flush=True); time.sleep(60)"


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[bytes]"]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait(30)


def begin(processes: list["subprocess.Popen[bytes]"], program: str, value: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, MARK: value}, stdout=subprocess.PIPE)
    processes.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    return process


def test_all_that_a_marked_process_has_started_is_ended_and_nothing_else(
    processes: list["subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    mine, other = str(tmp_path), str(tmp_path) + "/other"
    parent, bystander = begin(processes, CHILD, mine), begin(processes, CHILD, other)
    assert len(marked(MARK, mine)) == 2
    assert parent.pid in {process.pid for process in marked(MARK, mine)}
    assert end_marked(MARK, mine) == (2, 0)
    assert parent.wait(30) < 0
    assert bystander.poll() is None
    assert end_marked(MARK, other) == (2, 0)
    assert marked(MARK, mine) == set()


def test_what_does_not_listen_is_killed(processes: list["subprocess.Popen[bytes]"], tmp_path: Path) -> None:
    process = begin(processes, STUBBORN, str(tmp_path))
    assert end_marked(MARK, str(tmp_path), patience=0.2) == (1, 0)
    assert process.wait(30) == -9


def test_nothing_that_is_marked_is_nothing_to_end(tmp_path: Path) -> None:
    assert end_marked(MARK, str(tmp_path)) == (0, 0)


def test_a_child_that_has_lost_its_mark_is_ended_with_its_parent(
    processes: list["subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    begin(processes, BARE, str(tmp_path))
    assert len(marked(MARK, str(tmp_path))) == 2
    assert end_marked(MARK, str(tmp_path)) == (2, 0)
