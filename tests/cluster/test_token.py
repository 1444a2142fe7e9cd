import stat
from pathlib import Path

import pytest

from qwen_service.cluster.ray_command import ClusterError
from qwen_service.cluster.token import demand_token, make_token, token_file


def test_ray_and_we_look_into_the_same_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_file({}) == tmp_path / ".ray" / "auth_token"
    assert token_file({"RAY_AUTH_TOKEN_PATH": "/etc/qwen/token"}) == Path("/etc/qwen/token")


def test_a_new_token_is_long_and_for_this_user_only(tmp_path: Path) -> None:
    first, second = tmp_path / ".ray" / "auth_token", tmp_path / "other"
    assert make_token(first)
    assert make_token(second)
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    assert len(first.read_text()) == 64
    assert first.read_text() != second.read_text()
    demand_token(first)


def test_a_token_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "auth_token"
    make_token(path)
    before = path.read_text()
    assert not make_token(path)
    assert path.read_text() == before


def test_without_a_token_the_copy_from_the_head_is_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"scp 10\.0\.0\.1:\.ray/auth_token .* chmod 600"):
        demand_token(tmp_path / "auth_token", "10.0.0.1")


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_token_that_others_can_read_is_refused_without_showing_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "auth_token"
    make_token(path)
    path.chmod(mode)
    with pytest.raises(ClusterError, match="chmod 600") as refusal:
        demand_token(path)
    assert path.read_text() not in refusal.value.message


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match="cannot be written"):
        make_token(tmp_path / "file" / "auth_token")
