import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_service.chat import Sampling
from qwen_service.errors import UnknownModel
from qwen_service.models.catalog import PACKAGED, Catalog, axllm_model, gguf_model
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.models.manifest import ManifestError
from qwen_service.models.spec import HubSource, WheelSource

PI = Machine(root=Path("/nowhere"), machine="aarch64")

MANIFEST = """\
name: tiny
runtime: llamacpp
aliases: ["tiny:1b"]
files: [{path: tiny.gguf, size: 4}]
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog.load(tmp_path)


def install(catalog: Catalog, text: str = MANIFEST, content: bytes = b"GGUF") -> Catalog:
    (catalog.models_dir / "manifests").mkdir()
    (catalog.models_dir / "manifests/tiny.yaml").write_text(text)
    (catalog.models_dir / "tiny").mkdir()
    (catalog.models_dir / "tiny/tiny.gguf").write_bytes(content)
    return Catalog.load(catalog.models_dir)


@pytest.mark.parametrize("path", sorted(PACKAGED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_packaged_manifest_is_named_after_its_model_and_has_a_source(path: Path, catalog: Catalog) -> None:
    spec = catalog.find(path.stem)
    assert spec.name == path.stem
    assert spec.source is not None
    assert spec.license
    assert spec.parameter_size
    assert spec.quantization


def test_every_packaged_gguf_is_pinned_by_revision_size_and_sha256(catalog: Catalog) -> None:
    for spec in catalog.specs:
        if spec.runtime == "llamacpp":
            assert all(file.size and file.sha256 for file in spec.files), spec.name
            assert isinstance(spec.source, WheelSource) or (isinstance(spec.source, HubSource) and spec.source.revision)


def test_what_nobody_has_checked_of_a_model_is_said(catalog: Catalog) -> None:
    for spec in catalog.specs:
        notes = " ".join(spec.notes)
        converted = isinstance(spec.source, HubSource) and spec.source.repo.startswith("AXERA-TECH/")
        assert not converted or re.search("Not checked: (the|its) licence", notes), spec.name
        has_defaults = spec.sampling != Sampling() or spec.post_config or not spec.chats
        assert has_defaults or re.search("Not checked: .*sampling", notes), spec.name


@pytest.mark.parametrize("name", ["qwen3", "QWEN3:4B", "qwen3-4b:latest", " qwen3:latest ", "Qwen3-4B"])
@pytest.mark.parametrize("origin", ["", "library/", "registry.ollama.ai/library/", "Ollama.com/library/"])
def test_a_model_is_found_by_name_and_alias_in_any_case_with_or_without_latest_and_origin(
    name: str, origin: str, catalog: Catalog
) -> None:
    assert catalog.find(origin + name.strip()).name == catalog.find(name).name == "qwen3-4b"


@pytest.mark.parametrize("name", ["library/library/qwen3", "registry.ollama.ai/qwen3", "somebody/qwen3", "library/"])
def test_a_model_from_elsewhere_is_another_one(name: str, catalog: Catalog) -> None:
    with pytest.raises(UnknownModel):
        catalog.find(name)


def test_an_unknown_model_lists_what_there_is(catalog: Catalog) -> None:
    with pytest.raises(UnknownModel, match=r"'gpt-5'.*smollm2-135m") as raised:
        catalog.find("gpt-5")
    assert raised.value.param == "model"


def test_an_unknown_model_among_the_installed_ones_says_how_to_install_one(catalog: Catalog) -> None:
    with pytest.raises(UnknownModel, match="qwen-service pull"):
        catalog.find_installed("qwen3")


def test_nothing_is_installed_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert Catalog.load(tmp_path / "missing").installed() == []


def test_a_manifest_of_the_owner_is_read_and_its_model_installed(catalog: Catalog) -> None:
    catalog = install(catalog)
    assert [model.name for model in catalog.installed()] == ["tiny"]
    assert catalog.find_installed("TINY:1b").gguf == catalog.models_dir / "tiny/tiny.gguf"


def test_a_file_of_the_wrong_size_is_not_an_installed_model(catalog: Catalog) -> None:
    catalog = install(catalog, content=b"GGU")
    assert catalog.installed() == []
    with pytest.raises(UnknownModel, match=r"tiny is not complete: .* 1 \(tiny\.gguf\)\. `qwen-service pull tiny`"):
        catalog.find_installed("tiny:1b")


def test_a_manifest_of_the_owner_wins_over_the_packaged_one(catalog: Catalog) -> None:
    catalog = install(catalog, MANIFEST.replace("name: tiny", "name: smollm2-135m"))
    assert catalog.find("smollm2-135m").files[0].path == "tiny.gguf"


def test_two_models_with_one_name_are_refused(catalog: Catalog) -> None:
    with pytest.raises(ManifestError, match="qwen3: qwen3-4b and tiny"):
        install(catalog, MANIFEST.replace("tiny:1b", "qwen3:latest"))


def test_a_gguf_without_a_manifest_is_named_after_its_file(catalog: Catalog) -> None:
    (catalog.models_dir / "My Model.Q4_K_M.gguf").write_bytes(b"GGUF")
    model = catalog.find_installed("my-model.q4_k_m")
    assert model.gguf == catalog.models_dir / "My Model.Q4_K_M.gguf"
    assert model.spec.quantization == "Q4_K_M"
    assert catalog.find("my-model.q4_k_m") == model.spec


def test_a_model_path_need_not_lie_in_the_models_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    assert gguf_model(path).gguf == path
    assert gguf_model(path).size == 4


def test_a_folder_in_the_form_of_axllm_is_a_model(catalog: Catalog) -> None:
    folder = catalog.models_dir / "Qwen3-VL"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"filename_post_axmodel": "post.axmodel"}))
    model = catalog.find_installed("qwen3-vl")
    assert model.spec.runtime == "axllm"
    assert model.command(PI, {"port": "8000"}) == ["axllm", "serve", str(folder), "--port", "8000"]


def test_a_program_in_the_folder_wins_over_the_one_on_path(tmp_path: Path) -> None:
    (tmp_path / "axllm").touch()
    assert axllm_model(tmp_path).program(PI) == str(tmp_path / "axllm")


def test_another_folder_with_a_config_json_is_no_model(catalog: Catalog) -> None:
    (catalog.models_dir / "app").mkdir()
    (catalog.models_dir / "app/config.json").write_text("[]")
    assert catalog.installed() == []


def test_the_command_line_of_the_plain_repl_is_the_vendors(catalog: Catalog) -> None:
    model = InstalledModel(catalog.find("qwen2.5"), Path("/models/q"))
    command = model.command(PI, {"tokenizer_url": "http://127.0.0.1:12345"})
    assert command[0] == "/models/q/main_axcl_aarch64"
    assert " ".join(command[1:]) + "|" == (
        "--template_filename_axmodel qwen2.5-1.5b-gptq-int4-ax650/qwen2_p128_l%d_together.axmodel --axmodel_num 28"
        " --tokenizer_type 2 --filename_tokenizer_model http://127.0.0.1:12345 --bos 0 --eos 0"
        " --filename_post_axmodel qwen2.5-1.5b-gptq-int4-ax650/qwen2_post.axmodel"
        " --filename_tokens_embed qwen2.5-1.5b-gptq-int4-ax650/model.embed_tokens.weight.bfloat16.bin"
        " --tokens_embed_num 151936 --tokens_embed_size 1536 --use_mmap_load_embed 0 --live_print 1 --continue 1"
        " --prompt |"
    )


def test_the_api_program_gets_devices_on_a_host_with_a_card_and_not_on_the_board(
    catalog: Catalog, tmp_path: Path
) -> None:
    model = InstalledModel(catalog.find("qwen3"), tmp_path)
    values = {"tokenizer_url": "http://127.0.0.1:1", "system_prompt": "Be kind.", "devices": "0,1"}
    assert model.command(PI, values)[-2:] == ["--devices", "0,1"]
    (tmp_path / "proc/ax_proc").mkdir(parents=True)
    board = model.command(Machine(root=tmp_path, machine="aarch64"), values)
    assert board[0].endswith("main_api_ax650")
    assert board[1:3] == ["--system_prompt", "Be kind."]
    assert "--devices" not in board


def test_the_first_candidate_that_the_folder_has_is_the_program(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "proc/ax_proc").mkdir(parents=True)
    model = InstalledModel(catalog.find("qwen2.5"), tmp_path)
    board = Machine(root=tmp_path, machine="aarch64")
    assert model.program(board) == str(tmp_path / "main_ax650")
    (tmp_path / "main_prefill").touch()
    assert model.program(board) == str(tmp_path / "main_prefill")


def test_a_model_of_the_card_says_why_this_machine_cannot_run_it(catalog: Catalog, tmp_path: Path) -> None:
    spec = catalog.find("qwen3")
    assert "processor" in str(spec.obstacle(Machine(root=tmp_path, machine="riscv64")))
    assert "/dev/axcl_host" in str(spec.obstacle(Machine(root=tmp_path, machine="aarch64")))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/axcl_host").touch()
    assert spec.obstacle(Machine(root=tmp_path, machine="aarch64")) is None
    assert catalog.find("smollm2").obstacle(Machine(root=tmp_path, machine="riscv64")) is None


def test_a_pointer_of_git_lfs_is_recognised(catalog: Catalog) -> None:
    catalog = install(
        catalog, MANIFEST.replace(", size: 4", ""), b"version https://git-lfs.github.com/spec/v1\noid x\n"
    )
    assert catalog.find_installed("tiny").lfs_pointers() == ["tiny.gguf"]


def test_digests_differ_between_models(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    digests = {gguf_model(tmp_path / name).digest for name in ("a.gguf", "b.gguf")}
    assert len(digests) == 2
    assert all(len(digest) == 64 for digest in digests)


def aged(folder: Path) -> None:
    """As if nothing had been written for a second: what has just changed is not relied on."""
    past = time.time() - 1
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (past, past))


def test_files_are_looked_at_again_only_after_a_change(tmp_path: Path) -> None:
    catalog = install(Catalog.load(tmp_path))
    aged(tmp_path)
    first = catalog.installed()
    assert [model.name for model in first] == ["tiny"]
    assert catalog.installed()[0] is first[0]
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    assert [model.name for model in catalog.installed()] == ["tiny", "other"]


def remove_its_file(folder: Path) -> None:
    (folder / "tiny/tiny.gguf").unlink()


def remove_its_folder(folder: Path) -> None:
    shutil.rmtree(folder / "tiny")


def replace_by_a_longer_file(folder: Path) -> None:
    (folder / "new").write_bytes(b"GGUF and more")
    (folder / "new").replace(folder / "tiny/tiny.gguf")


@pytest.mark.parametrize("change", [remove_its_file, remove_its_folder, replace_by_a_longer_file])
def test_a_model_that_is_no_longer_whole_is_noticed(change: Callable[[Path], None], tmp_path: Path) -> None:
    catalog = install(Catalog.load(tmp_path))
    aged(tmp_path)
    assert [model.name for model in catalog.installed()] == ["tiny"]
    change(tmp_path)
    assert [model.name for model in catalog.installed()] == []
    with pytest.raises(UnknownModel):
        catalog.find_installed("tiny")


def test_a_model_that_is_still_being_copied_is_noticed_when_it_is_whole(tmp_path: Path) -> None:
    catalog = install(Catalog.load(tmp_path), content=b"G")
    aged(tmp_path)
    assert catalog.installed() == []
    with (tmp_path / "tiny/tiny.gguf").open("ab") as file:
        file.write(b"GUF")
    assert [model.name for model in catalog.installed()] == ["tiny"]


def test_a_file_without_manifest_that_grows_has_its_new_size(tmp_path: Path) -> None:
    path = tmp_path / "loose.gguf"
    path.write_bytes(b"GGUF")
    catalog = Catalog.load(tmp_path)
    aged(tmp_path)
    assert catalog.installed()[0].size == 4
    path.write_bytes(b"GGUF and more")
    assert catalog.installed()[0].size == 13
