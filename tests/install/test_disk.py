"""A disk that is full or cannot be written, while a model is installed: a reason with a path, never a traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_service.errors import InstallError
from qwen_service.install.disk import CURES, disk_faults_told
from qwen_service.install.staging import Staging
from tests.hub_server import hub_server, put
from tests.install.test_pull import FILES, MANIFEST, OLD, REPO, pull


@pytest.fixture
def models(tmp_path: Path) -> Path:
    put(tmp_path / "hub", REPO, OLD, FILES)
    (tmp_path / "models/manifests").mkdir(parents=True)
    (tmp_path / "models/manifests/tiny.yaml").write_text(MANIFEST)
    return tmp_path / "models"


def told(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr + done.stdout


def test_a_file_that_cannot_grow_during_a_download_is_told_with_its_path_and_the_cure(
    models: Path, tmp_path: Path
) -> None:
    """Of all that stops a file from growing, a limit on its size needs no disk of its own."""
    with hub_server(tmp_path / "hub") as hub:
        argv = [sys.executable, "-m", "qwen_service", "pull", "tiny", "--models-dir", str(models)]
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home"), "NO_PROXY": "*"}
        limited = ["sh", "-c", 'ulimit -f 512 && exec "$@"', "sh", *argv]  # 256 kB
        done = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=100, check=False)
    text = " ".join(told(done).split())
    assert "tiny" in text
    assert "takes no file of this size" in text


def test_a_file_where_a_folder_must_be_is_told(models: Path, tmp_path: Path) -> None:
    (models / ".partial").write_text("not a folder")
    with hub_server(tmp_path / "hub") as hub:
        text = told(pull(models, hub.url))
    assert ".partial" in text


@pytest.mark.parametrize("number", [*CURES, errno.ENAMETOOLONG])
def test_every_fault_of_a_disk_names_the_path_and_the_model(number: int, tmp_path: Path) -> None:
    with pytest.raises(InstallError) as caught, disk_faults_told("tiny", tmp_path):
        raise OSError(number, os.strerror(number), "/models/tiny/l0.axmodel")
    assert caught.value.message.startswith("tiny: /models/tiny/l0.axmodel: ")
    assert CURES.get(number, os.strerror(number)) in caught.value.message


def test_a_lock_that_is_not_got_is_closed_again(tmp_path: Path) -> None:
    """Warnings are errors here: a file that is left open would be one."""
    with Staging(tmp_path, "tiny", "x"):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(InstallError, match="another process"), Staging(tmp_path, "tiny", "x"):
            pass
        assert len(os.listdir("/proc/self/fd")) == before
    (tmp_path / ".partial/other@x").write_text("not a folder")
    with pytest.raises(OSError, match="other@x"), Staging(tmp_path, "other", "x"):
        pass
