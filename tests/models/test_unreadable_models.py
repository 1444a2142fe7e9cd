"""Models that the service's user may not read, as `sudo` with a strict umask leaves them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import ROOT

# Root reads everything, unless it has lost these two capabilities.
AS_ANYBODY = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.getuid() == 0 else []
CLOSED, OPEN = "smollm2-135m", "mine.gguf"


@pytest.fixture(params=["folder", "file"])
def models(request: pytest.FixtureRequest, tmp_path: Path, small_gguf: Path) -> Iterator[Path]:
    """One model that is closed, in two ways, and a GGUF file beside it."""
    folder = tmp_path / "models"
    (folder / CLOSED).mkdir(parents=True)
    closed = folder / CLOSED / small_gguf.name
    closed.write_bytes(small_gguf.read_bytes())
    (folder / OPEN).symlink_to(small_gguf)
    place = closed.parent if request.param == "folder" else closed
    with shut(place):
        yield folder


@contextmanager
def shut(place: Path) -> Iterator[None]:
    mode = place.stat().st_mode
    place.chmod(0)
    try:
        yield
    finally:  # pytest removes it
        place.chmod(mode)


def run(models: Path, code: str) -> str:
    """Run it as somebody who may not read the model."""
    head = (
        "from pathlib import Path; from qwen_service.models.catalog import Catalog; from qwen_service.errors import *;"
        "from qwen_service.engines.choice import ModelChoice; from qwen_service.models.machine import Machine;"
        "from qwen_service.settings import Settings;"
        f"catalog = Catalog.load(Path({str(models)!r}));"
        f"choice = ModelChoice(Settings(models_dir={str(models)!r}), catalog, Machine())\n"
    )
    done = subprocess.run(
        [*AS_ANYBODY, sys.executable, "-c", head + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_others_are_served(models: Path) -> None:
    assert run(models, "print(choice.first().name)") == "mine\n"


def test_it_is_refused_with_the_cure(models: Path) -> None:
    """A file that alone is closed counts as installed, as on a card, where only the vendor's program reads it."""
    asked = f"try:\n    choice.refuse_impossible(choice.installed({CLOSED!r}))\nexcept ServiceError as error:\n    print(error.message)"
    said = run(models, asked)
    assert "cannot be read by this user. `sudo chmod -R a+rX" in said
    assert str(models) in said


def test_lists_and_the_doctor_go_on(models: Path) -> None:
    for command in (["list"], ["list", "--all"]):
        done = types(models, *command)
        assert done.returncode == 0, done.stderr
    assert "cannot be read by this user" in types(models, "doctor").stdout


@pytest.mark.parametrize("command", ["list", "doctor", "serve"])
def test_a_closed_models_dir_is_named_with_the_cure(tmp_path: Path, command: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    with shut(folder):
        done = types(folder, command)
    assert done.returncode != 0
    assert f"sudo chmod -R a+rX {folder}" in done.stdout + done.stderr


def types(models: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    argv = [*AS_ANYBODY, sys.executable, "-m", "qwen_service", *command]
    environment = {**os.environ, "QWEN_MODELS_DIR": str(models), "QWEN_STATE_DIR": str(models.parent / "state")}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert "Traceback" not in done.stdout + done.stderr
    return done
