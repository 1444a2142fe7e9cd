import stat
from pathlib import Path

import pytest

from qwen_service.pipeline.head_file import LINES, MOST_MODELS, NAME, HeadFile, LineFile, StoredHead

HEAD = StoredHead(b"\x01\x02", (5, 6, 7))


def test_a_head_survives_and_is_readable_for_its_user_only(tmp_path: Path) -> None:
    HeadFile(tmp_path).put("m", HEAD)
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
    assert HeadFile(tmp_path).take("m") == HEAD


def test_a_head_that_was_taken_is_gone_until_it_is_put_back(tmp_path: Path) -> None:
    """Should an engine die of it, the next one comes up without."""
    file = HeadFile(tmp_path)
    file.put("m", HEAD)
    file.put("other", HEAD)
    assert file.take("m") == HEAD
    assert file.take("m") is None
    assert file.take("other") == HEAD


@pytest.mark.parametrize("content", ["", "[]", '{"m": 3}', '{"m": {"head": "xy", "ids": []}}', '{"m": {"ids": [1]}}'])
def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    file = HeadFile(tmp_path)
    assert file.take("m") is None
    file.put("m", HEAD)
    assert file.take("m") == HEAD


def test_a_folder_that_cannot_be_written_costs_no_more_than_the_memory(tmp_path: Path) -> None:
    file = HeadFile(tmp_path / "missing")
    file.put("m", HEAD)
    assert file.take("m") is None


def test_only_so_many_models_are_kept(tmp_path: Path) -> None:
    file = HeadFile(tmp_path)
    for number in range(MOST_MODELS + 1):
        file.put(f"m{number}", HEAD)
    assert file.take("m0") is None
    assert file.take(f"m{MOST_MODELS}") == HEAD


def test_lines_survive_and_are_readable_for_their_user_only(tmp_path: Path) -> None:
    assert LineFile(tmp_path).read() == []
    LineFile(tmp_path).write(["a1", "b2"])
    assert stat.S_IMODE((tmp_path / LINES).stat().st_mode) == 0o600
    assert LineFile(tmp_path).read() == ["a1", "b2"]
    (tmp_path / LINES).write_text('{"not": "a list"}')
    assert LineFile(tmp_path).read() == []
