"""`pull NAME --from DIR`, and `verify`, `rm` of what was installed."""

import json
from pathlib import Path

import pytest

from tests.install.test_pull import FILES, LAYER, MANIFEST, qwen


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models/manifests").mkdir(parents=True)
    (tmp_path / "models/manifests/tiny.yaml").write_text(MANIFEST)
    return tmp_path / "models"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name, content in {**FILES, ".git/config": b"", "run.sh": b"#!/bin/sh\n"}.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "clone"


def test_a_folder_is_adopted_as_hard_links_without_its_git_history(models: Path, clone: Path) -> None:
    done = qwen(models, "pull", "tiny", "--from", str(clone))
    assert done.returncode == 0, done.stderr
    assert (models / "tiny/m/l0.axmodel").samefile(clone / "m/l0.axmodel")
    assert (models / "tiny/main_pi").stat().st_mode & 0o111
    assert not (models / "tiny/.git").exists()
    assert len(json.loads((models / "tiny/.qwen-service.json").read_text())["files"]) == 5


def test_a_folder_is_adopted_as_symbolic_links_when_asked_for(models: Path, clone: Path) -> None:
    assert qwen(models, "pull", "tiny", "--from", str(clone), "--link").returncode == 0
    assert (models / "tiny/m/l0.axmodel").readlink() == clone / "m/l0.axmodel"
    assert not (models / "tiny/main_pi").is_symlink()
    assert (clone / "main_pi").stat().st_mode & 0o111 == 0


def test_a_folder_in_its_place_is_adopted_where_it_is(models: Path, clone: Path) -> None:
    clone.rename(models / "tiny")
    assert qwen(models, "pull", "tiny", "--from", str(models / "tiny")).returncode == 0
    assert (models / "tiny/main_pi").stat().st_mode & 0o111
    assert (models / "tiny/.qwen-service.json").is_file()


def test_pointers_of_git_lfs_are_refused_with_the_cure(models: Path, clone: Path) -> None:
    (clone / "m/l0.axmodel").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    done = qwen(models, "pull", "tiny", "--from", str(clone))
    assert done.returncode == 1
    assert "1 files are text pointers of git-lfs" in done.stderr
    assert "git lfs pull" in done.stderr


def test_a_folder_of_something_else_is_refused(models: Path, tmp_path: Path) -> None:
    done = qwen(models, "pull", "tiny", "--from", str(tmp_path))
    assert "is not tiny: m/l0.axmodel, m/l1.axmodel, tok/tokenizer.json missing" in done.stderr
    assert "is not a folder" in qwen(models, "pull", "tiny", "--from", str(tmp_path / "gone")).stderr


def test_verify_finds_a_changed_a_missing_and_a_pointer_file(models: Path, clone: Path) -> None:
    qwen(models, "pull", "tiny", "--from", str(clone))
    assert qwen(models, "verify", "tiny").stdout.endswith("tiny: 5 files ok\n")
    (models / "tiny/m/l0.axmodel").write_bytes(LAYER[::-1])
    (models / "tiny/m/l1.axmodel").unlink()
    (models / "tiny/tok/tokenizer.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (models / "tiny/main_pi").chmod(0o644)
    done = qwen(models, "verify", "tiny")
    assert done.returncode == 1
    assert "tiny: m/l0.axmodel: sha256" in done.stdout
    assert "tiny: m/l1.axmodel: missing" in done.stdout
    assert "tiny: 1 files are text pointers" in done.stdout
    assert "chmod +x" in done.stdout


def test_verify_says_what_it_has_nothing_to_compare_with(models: Path, clone: Path) -> None:
    clone.rename(models / "tiny")
    assert "3 files have no known checksum" in qwen(models, "verify").stdout


def test_rm_removes_the_folder_and_says_what_is_free_again(models: Path, clone: Path) -> None:
    qwen(models, "pull", "tiny", "--from", str(clone))
    assert "2.1 MB are free again" in qwen(models, "rm", "tiny").stdout
    assert not (models / "tiny").exists()
    assert (clone / "m/l0.axmodel").is_file()
    assert "tiny is not installed" in qwen(models, "rm", "tiny").stderr


def test_list_and_show_tell_what_is_there(models: Path, clone: Path) -> None:
    assert "No model is installed" in qwen(models, "list").stdout
    qwen(models, "pull", "tiny", "--from", str(clone))
    (row,) = json.loads(qwen(models, "list", "--json").stdout)
    assert (row["name"], row["installed"], row["folder"]) == ("tiny", True, str(models / "tiny"))
    assert "qwen3-4b " in qwen(models, "list", "--all").stdout
    shown = qwen(models, "show", "qwen3").stdout
    assert "AXERA-TECH/Qwen3-4B at the newest revision with all its files" in shown
    assert "installed     no" in shown
