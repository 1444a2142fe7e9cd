"""`qwen-service pull` as a process of its own, against a server that plays the hub."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import preloaded
from tests.hub_server import hub_server, put

REPO = "axera/tiny"
OLD, NEW = "a" * 40, "b" * 40
LAYER = bytes(range(256)) * 4096  # 1 MiB
FILES = {"m/l0.axmodel": LAYER, "m/l1.axmodel": LAYER[::-1], "tok/tokenizer.json": b"{}", "main_pi": b"\x7fELF"}
MANIFEST = f"""\
name: tiny
runtime: ax_api
tokenizer: tok
source: {{repo: {REPO}, revision: {OLD}}}
files: [{{path: "m/l{{0..1}}.axmodel"}}, {{path: tok/tokenizer.json}}]
programs:
  axcl_arm64: {{candidates: [main_pi]}}
  axcl_x86_64: {{candidates: [main_pi]}}
  ax650: {{candidates: [main_pi]}}
"""


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    put(tmp_path / "hub", REPO, OLD, FILES | {"notes.txt": b"not needed", "README.md": b"read me"})
    return tmp_path / "hub"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return models_dir(tmp_path, MANIFEST)


def models_dir(folder: Path, manifest: str) -> Path:
    """One that knows a model `tiny`."""
    (folder / "models/manifests").mkdir(parents=True)
    (folder / "models/manifests/tiny.yaml").write_text(manifest)
    return folder / "models"


def qwen(models: Path, *command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    home = {"HF_HOME": str(models.parent / "hf-home"), "NO_PROXY": "*"}
    return preloaded.run(*command, "--models-dir", str(models), env={**os.environ, **home, **(env or {})})


def pull(models: Path, url: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    return qwen(models, "pull", "tiny", *options, env={"HF_ENDPOINT": url, **env})


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_model_is_pulled_verified_recorded_and_runnable(hub: Path, models: Path) -> None:
    with hub_server(hub) as server:
        done = pull(models, server.url)
    assert done.returncode == 0, done.stderr
    for name, content in FILES.items():
        assert (models / "tiny" / name).read_bytes() == content
    assert (models / "tiny/main_pi").stat().st_mode & 0o111 == 0o111
    assert (models / "tiny/README.md").is_file()
    assert not (models / "tiny/notes.txt").exists()
    record = json.loads((models / "tiny/.qwen-service.json").read_text())
    assert record["revision"] == OLD
    assert record["files"]["m/l0.axmodel"] == {"size": len(LAYER), "sha256": sha256(LAYER)}
    assert record["files"]["tok/tokenizer.json"]["sha256"] == sha256(b"{}")


def test_a_second_pull_downloads_nothing(hub: Path, models: Path) -> None:
    with hub_server(hub) as server:
        pull(models, server.url)
        before = len(server.requests())
        assert "installed already" in pull(models, server.url).stdout
        assert len(server.requests()) == before


def test_a_cut_connection_is_gone_on_from_where_it_was(hub: Path, models: Path) -> None:
    with hub_server(hub, "--cut-after", "300000", "--cuts", "1") as server:
        done = pull(models, server.url)
        assert done.returncode == 0, done.stderr
        ranges = [r["range"] for r in server.downloads_of(".axmodel")]
    assert sorted(filter(None, ranges)) == ["bytes=300000-"]
    assert (models / "tiny/m/l0.axmodel").read_bytes() == LAYER
    assert (models / "tiny/m/l1.axmodel").read_bytes() == LAYER[::-1]


def test_what_an_interrupted_pull_left_is_used_by_the_next_one(hub: Path, models: Path) -> None:
    part = models / ".partial" / f"tiny@{OLD[:12]}/m/l0.axmodel.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(LAYER[:500_000])
    with hub_server(hub) as server:
        assert pull(models, server.url).returncode == 0
        assert [r["range"] for r in server.downloads_of("l0.axmodel")] == ["bytes=500000-"]
    assert (models / "tiny/m/l0.axmodel").read_bytes() == LAYER
    assert not list((models / ".partial").glob("*@*"))


def test_a_server_without_ranges_sends_the_whole_file_again(hub: Path, models: Path) -> None:
    part = models / ".partial" / f"tiny@{OLD[:12]}/m/l0.axmodel.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 500_000)
    with hub_server(hub, "--no-ranges") as server:
        assert pull(models, server.url).returncode == 0
    assert (models / "tiny/m/l0.axmodel").read_bytes() == LAYER


def test_a_damaged_part_is_thrown_away_and_fetched_anew(hub: Path, models: Path) -> None:
    part = models / ".partial" / f"tiny@{OLD[:12]}/m/l0.axmodel.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 500_000)
    with hub_server(hub) as server:
        assert pull(models, server.url).returncode == 0
        assert [r["range"] for r in server.downloads_of("l0.axmodel")] == ["bytes=500000-", None]
    assert (models / "tiny/m/l0.axmodel").read_bytes() == LAYER


@pytest.mark.parametrize("name", ["m/l1.axmodel", "tok/tokenizer.json"])
def test_wrong_bytes_are_refused_and_nothing_is_installed(hub: Path, models: Path, name: str) -> None:
    with hub_server(hub, "--wrong-bytes", name) as server:
        done = pull(models, server.url)
    assert done.returncode == 1
    assert f"{name} from {server.url} is not the published file: sha256" in done.stderr
    assert not (models / "tiny").exists()


def test_a_checksum_of_the_manifest_is_held_against_the_hub(hub: Path, models: Path) -> None:
    manifest = MANIFEST.replace('path: "m/l{0..1}.axmodel"', f"path: m/l0.axmodel, sha256: {'f' * 64}")
    (models / "manifests/tiny.yaml").write_text(manifest)
    with hub_server(hub) as server:
        done = pull(models, server.url)
        assert not server.downloads_of("l0.axmodel")
    assert done.returncode == 1
    assert f"expected {'f' * 64}" in done.stderr


def test_a_file_that_the_repository_lacks_is_named(hub: Path, models: Path) -> None:
    (hub / REPO / OLD / "m/l1.axmodel").unlink()
    with hub_server(hub) as server:
        done = pull(models, server.url)
    assert done.returncode == 1
    assert f"{REPO} at {OLD[:12]} on {server.url} lacks m/l1.axmodel." in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((OLD, "c" * 40), "does not have this revision"),
        ((REPO, "axera/gone"), "has no such repository"),
    ],
)
def test_what_the_hub_does_not_have_is_said(hub: Path, models: Path, change: tuple[str, str], message: str) -> None:
    (models / "manifests/tiny.yaml").write_text(MANIFEST.replace(*change))
    with hub_server(hub) as server:
        done = pull(models, server.url)
    assert done.returncode == 1
    assert message in done.stderr
    assert server.url in done.stderr


@pytest.mark.parametrize("fault", [("--rate-limit", "1"), ("--down", "3")])
def test_too_many_requests_and_a_hub_that_is_restarted_are_waited_for(
    hub: Path, models: Path, fault: tuple[str, str]
) -> None:
    with hub_server(hub, *fault) as server:
        done = pull(models, server.url)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.long  # the library of the hub tries for 24 s
def test_a_hub_that_is_not_there_is_said_without_a_traceback(models: Path) -> None:
    done = pull(models, "http://127.0.0.1:9", HF_HUB_ETAG_TIMEOUT="1")
    assert done.returncode == 1
    assert "no connection to http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_token_is_sent_to_the_hub_and_never_shown(hub: Path, models: Path) -> None:
    with hub_server(hub, "--token", "hf_verysecret", "--wrong-bytes", "l1.axmodel") as server:
        failed = pull(models, server.url, HF_TOKEN="hf_verysecret")
        at_hub = [r for r in server.requests() if "/resolve/" in str(r["path"]) or "/tree/" in str(r["path"])]
        assert {r["authorization"] for r in at_hub} == {"Bearer hf_verysecret"}
        assert {r["authorization"] for r in server.downloads_of("")} == {None}
        refused = pull(models, server.url, HF_TOKEN="hf_another")
    assert "is not the published file" in failed.stderr
    assert "only with a token in HF_TOKEN" in refused.stderr
    for output in (failed.stdout, failed.stderr, refused.stdout, refused.stderr):
        assert "hf_" not in output
        assert "signature" not in output


def test_progress_for_programs_is_one_json_object_a_line(hub: Path, models: Path) -> None:
    with hub_server(hub) as server:
        lines = [json.loads(line) for line in pull(models, server.url, "--progress", "json").stdout.splitlines()]
    total = sum(map(len, FILES.values())) + len(b"read me")
    figures = [line for line in lines if line["status"] == "downloading"]
    assert figures[-1] == {"status": "downloading", "completed": total, "total": total, "files": 5, "total_files": 5}
    assert lines[-1] == {"status": "success"}


def test_an_error_for_programs_is_a_json_line_too(models: Path, hub: Path) -> None:
    (hub / REPO / OLD / "main_pi").unlink()
    with hub_server(hub) as server:
        done = pull(models, server.url, "--progress", "json")
    assert done.returncode == 1
    assert "lacks main_pi" in json.loads(done.stdout.splitlines()[-1])["error"]


def test_without_a_pinned_revision_the_newest_commit_with_all_files_is_taken_and_recorded(
    hub: Path, models: Path
) -> None:
    put(hub, REPO, NEW, {"config.json": b"{}"})
    os.utime(hub / REPO / OLD, (1, 1))
    (models / "manifests/tiny.yaml").write_text(MANIFEST.replace(f", revision: {OLD}", ""))
    with hub_server(hub) as server:
        done = pull(models, server.url)
        assert done.returncode == 0, done.stderr
        assert "installed already" in pull(models, server.url).stdout
    assert json.loads((models / "tiny/.qwen-service.json").read_text())["revision"] == OLD


def test_without_any_commit_that_has_the_files_that_is_said(hub: Path, models: Path) -> None:
    (hub / REPO / OLD / "main_pi").unlink()
    (models / "manifests/tiny.yaml").write_text(MANIFEST.replace(f", revision: {OLD}", ""))
    with hub_server(hub) as server:
        done = pull(models, server.url)
    assert "None of the last 1 commits" in done.stderr


def test_a_new_revision_replaces_the_old_folder_at_once(hub: Path, models: Path) -> None:
    put(hub, REPO, NEW, FILES | {"m/l0.axmodel": b"new"})
    with hub_server(hub) as server:
        pull(models, server.url)
        (models / "manifests/tiny.yaml").write_text(MANIFEST.replace(OLD, NEW))
        assert pull(models, server.url).returncode == 0
    assert (models / "tiny/m/l0.axmodel").read_bytes() == b"new"
    assert not (models / "tiny/README.md").exists()


def test_a_model_is_not_installed_twice_at_a_time(hub: Path, models: Path) -> None:
    (models / ".partial").mkdir()
    lock = models / ".partial/tiny.lock"
    holder = subprocess.Popen(["flock", str(lock), "sh", "-c", "echo held; read _"], stdin=-1, stdout=-1, text=True)
    with holder, hub_server(hub) as server:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = pull(models, server.url)
        holder.communicate("\n")
    assert "being installed by another process" in done.stderr


def test_an_unknown_model_lists_what_there_is(models: Path) -> None:
    done = qwen(models, "pull", "nope")
    assert done.returncode == 1
    assert "There is no model 'nope'" in done.stderr
    assert "smollm2-135m" in done.stderr
