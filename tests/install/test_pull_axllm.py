"""A model for axllm is what its own config.json says; its revision is found, recorded and verified."""

import json
from pathlib import Path

from tests.hub_server import hub_server, put
from tests.install.test_pull import qwen

REPO = "axera/thing"
OLD, NEW = "a" * 40, "b" * 40
MANIFEST = f"""\
name: thing
runtime: axllm
source: {{repo: {REPO}}}
files: [{{path: config.json}}]
arguments: [serve, "{{folder}}", --port, "{{port}}"]
"""
CONFIG = {"template_filename_axmodel": "m/l%d.axmodel", "axmodel_num": 2, "filename_post_axmodel": "m/post.axmodel"}
FILES = {
    "config.json": json.dumps(CONFIG | {"url_tokenizer_model": "tok.txt", "devices": [0]}).encode(),
    "m/l0.axmodel": b"zero" * 1000,
    "m/l1.axmodel": b"one" * 1000,
    "m/post.axmodel": b"post",
    "tok.txt": b"tokens",
}


def models_dir(tmp_path: Path) -> Path:
    (tmp_path / "models/manifests").mkdir(parents=True)
    (tmp_path / "models/manifests/thing.yaml").write_text(MANIFEST)
    return tmp_path / "models"


def test_the_files_that_the_config_names_are_pulled_and_the_revision_is_recorded(tmp_path: Path) -> None:
    models = models_dir(tmp_path)
    put(tmp_path / "hub", REPO, NEW, FILES | {"demo.mp4": b"not needed", "m/l7.axmodel": b"not counted"})
    with hub_server(tmp_path / "hub") as server:
        done = qwen(models, "pull", "thing", env={"HF_ENDPOINT": server.url})
        assert done.returncode == 0, done.stderr
        again = qwen(models, "pull", "thing", env={"HF_ENDPOINT": server.url})
    record = json.loads((models / "thing/.qwen-service.json").read_text())
    assert record["revision"] == NEW
    assert set(FILES) <= set(record["files"])
    assert not (models / "thing/demo.mp4").exists()
    assert "installed already" in again.stdout
    verified = qwen(models, "verify", "thing")
    assert (verified.returncode, f"{len(record['files'])} files ok" in verified.stdout) == (0, True), verified.stdout
    (models / "thing/m/l1.axmodel").write_bytes(b"changed")
    assert qwen(models, "verify", "thing").returncode == 1


def test_a_repository_in_another_form_is_refused(tmp_path: Path) -> None:
    models = models_dir(tmp_path)
    put(tmp_path / "hub", REPO, NEW, {"config.json": b'{"model_type": "qwen3"}', "model.safetensors": b"x"})
    with hub_server(tmp_path / "hub") as server:
        done = qwen(models, "pull", "thing", env={"HF_ENDPOINT": server.url})
    assert done.returncode != 0
    assert "is not in the form of axllm" in done.stderr
    assert not (models / "thing").exists()
