from pathlib import Path

import pytest

from tests.recorded_machine import RecordedMachine


@pytest.fixture
def pi(tmp_path: Path) -> RecordedMachine:
    return RecordedMachine(tmp_path / "root")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"
