import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_service.process.instance_lock import AlreadyRunning, InstanceLock

TAKES = "import sys; from pathlib import Path; from qwen_service.process.instance_lock import InstanceLock; InstanceLock(Path(sys.argv[1])).take()"


def test_the_second_is_told_who_has_it_and_the_next_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "service.pid"
    first, second = InstanceLock(path), InstanceLock(path)
    first.take()
    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(AlreadyRunning) as refusal:
        second.take()
    assert refusal.value.pid == str(os.getpid())
    first.release()
    second.take()
    second.release()


def test_a_process_that_has_ended_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "service.pid"
    subprocess.run([sys.executable, "-c", TAKES, str(path)], check=True, timeout=30)
    lock = InstanceLock(path)
    lock.take()
    assert path.read_text() == f"{os.getpid()}\n"
    lock.release()


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"service\.pid"):
        InstanceLock(tmp_path / "nowhere/service.pid").take()
