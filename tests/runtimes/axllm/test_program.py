"""Which axllm is taken; and every manifest for it, started with the simulator in its place."""

import json
import os
import shutil
from pathlib import Path

import pytest

from qwen_service.errors import StartFailed
from qwen_service.models.catalog import PACKAGED, Catalog, axllm_model
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.models.manifest import read_manifest
from qwen_service.runtimes.axllm.bring_up import loaders
from qwen_service.runtimes.axllm.program import backend_of, find_axllm
from qwen_service.settings import Settings
from tests.runtimes.simulators.test_simulator_main_api import free_port

SIMULATOR = Path(__file__).parents[2] / "simulators" / "axllm"
MANIFESTS = [path for path in sorted(PACKAGED.glob("*.yaml")) if read_manifest(path).runtime == "axllm"]
HOST = Machine(root=Path("/nowhere"), machine="aarch64")
CONFIG = {"filename_post_axmodel": "post.axmodel", "template_filename_axmodel": "l%d.axmodel", "axmodel_num": 2}


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("post.axmodel", "l0.axmodel", "l1.axmodel"):
        (folder / name).write_bytes(b"x")
    return folder


def build(place: Path, backend: str) -> Path:
    """An axllm that only knows its version."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"#!/bin/sh\necho 'axllm 1.4'; echo 'backend: {backend}'\n")
    return place


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


async def test_the_folders_own_comes_first_and_gets_its_run_bit(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    own = build(folder / "bin" / "axllm", "AXCL")
    assert await find_axllm(axllm_model(folder), HOST) == str(own)
    assert own.stat().st_mode & 0o111


async def test_a_wrong_build_is_passed_over_for_the_right_one_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "m")
    build(folder / "axllm", "AX650")
    right = build(tmp_path / "path" / "axllm", "AXCL")
    right.chmod(0o755)
    put_on_path(right.parent, monkeypatch)
    assert await find_axllm(axllm_model(folder), HOST) == str(right)


async def test_only_wrong_builds_are_refused_by_name_with_where_to_get_the_right_one(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    wrong = build(folder / "axllm", "AX650")
    with pytest.raises(StartFailed) as raised:
        await find_axllm(axllm_model(folder), HOST)
    assert raised.value.permanent
    assert (
        f"{wrong} is a build for the AX650 board (AX650), but this machine is a host with a card"
        in raised.value.message
    )
    assert "github.com/AXERA-TECH/ax-llm" in raised.value.message


async def test_the_board_wants_its_own_build(tmp_path: Path) -> None:
    (tmp_path / "root/proc/ax_proc").mkdir(parents=True)
    board = Machine(root=tmp_path / "root", machine="aarch64")
    folder = model_folder(tmp_path / "m")
    build(folder / "axllm", "AXCL")
    with pytest.raises(StartFailed, match="but this machine is the AX650 board"):
        await find_axllm(axllm_model(folder), board)


async def test_none_at_all_says_so(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"There is no axllm in .+ or on PATH"):
        await find_axllm(axllm_model(model_folder(tmp_path / "m")), HOST)


async def test_an_older_build_that_tells_nothing_is_taken(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    old = folder / "axllm"
    old.write_text("#!/bin/sh\necho usage >&2; exit 1\n")
    assert await find_axllm(axllm_model(folder), HOST) == str(old)


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("axllm 1.2 (AXCL)", "AXCL"),
        ("backend: axcl\nchip: AX650N", "AXCL"),
        ("backend: AX650", "AX650"),
        ("built for AX650N", "AX650"),
        ("axllm 0.9", None),
        ("", None),
    ],
)
def test_the_backend_is_read_from_the_version(text: str, backend: str | None) -> None:
    assert backend_of(text) == backend


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
async def test_every_manifest_starts_the_program(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = read_manifest(manifest)
    folder = model_folder(tmp_path / "models" / spec.name)
    (tmp_path / "path").mkdir()
    shutil.copy(SIMULATOR, tmp_path / "path" / "axllm")
    put_on_path(tmp_path / "path", monkeypatch)
    monkeypatch.setenv("SIM_RECORD", str(tmp_path / "record"))
    (model,) = [one for one in Catalog.load(tmp_path / "models").installed() if one.name == spec.name]
    assert model == InstalledModel(spec, folder)
    settings = Settings(state_dir=tmp_path / "state", models_dir=tmp_path / "models", runtime_port=free_port())
    (load,) = loaders(model, settings, HOST).values()
    engine = await load(lambda _: None)
    try:
        assert engine.limits.context == (spec.context or 2048)
    finally:
        await engine.stop()
