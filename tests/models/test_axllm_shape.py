"""Which files a folder for axllm consists of, by its config.json alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_service.errors import InstallError
from qwen_service.models.axllm_shape import has_eyes, needed_files, read_config, wanted_files
from qwen_service.models.catalog import axllm_model

CONFIG: dict[str, Any] = {
    "template_filename_axmodel": "qwen3_p128_l%d_together.axmodel",
    "axmodel_num": 3,
    "filename_post_axmodel": "./qwen3_post.axmodel",
    "filename_tokens_embed": "embed/tokens.bin",
    "url_tokenizer_model": "qwen3_tokenizer.txt",
    "post_config_path": "post_config.json",
    "system_prompt": "You are helpful.",
    "vision": {"filename_image_encoder": "vision/encoder.axmodel", "cache": "vision_cache"},
}
LAYERS = [f"qwen3_p128_l{n}_together.axmodel" for n in range(3)]
NEEDED = ["config.json", *LAYERS, "qwen3_post.axmodel", "embed/tokens.bin"]


def test_layers_are_counted_and_files_are_those_of_the_filename_keys() -> None:
    assert list(needed_files(CONFIG)) == NEEDED


def test_what_else_the_config_names_is_taken_where_the_repository_has_it() -> None:
    also = ["qwen3_tokenizer.txt", "post_config.json", "vision/encoder.axmodel", "vision_cache/a.bin"]
    other = ["main_ax650", "README.md", "qwen3_p128_l9_together.axmodel.bak", "visionary.txt", "old/qwen3_post.axmodel"]
    assert set(wanted_files(CONFIG, {*NEEDED, *also, *other})) == {*NEEDED, *also}


def test_a_file_that_is_named_and_not_there_is_an_error() -> None:
    with pytest.raises(InstallError, match=f"not there: {LAYERS[2]}"):
        wanted_files(CONFIG, set(NEEDED) - {LAYERS[2]})


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.bin", "http://host/x.bin", "", ".", "a\0b"])
def test_a_path_that_leaves_the_folder_is_no_file_of_it(name: str) -> None:
    assert name not in needed_files(CONFIG | {"filename_x": name})
    assert len(needed_files(CONFIG | {"filename_x": name})) == len(NEEDED)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_type": "qwen3"}', "\udcff".encode(errors="replace")])
def test_another_config_json_is_none_of_axllms(content: str | bytes) -> None:
    assert read_config(content) is None


def test_a_huge_number_of_layers_is_bounded() -> None:
    assert len(needed_files(CONFIG | {"axmodel_num": 10**12})) < 2000


def test_an_installed_folder_is_complete_when_all_that_its_config_names_is_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = axllm_model(tmp_path)
    assert model.missing_files() == NEEDED[1:]
    for name in NEEDED[1:]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert model.missing_files() == []
    assert model.size > len(NEEDED)
    assert "vision" not in model.capabilities


def test_eyes_are_told_by_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"vlm_type": "Qwen3VL"}))
    assert has_eyes(CONFIG | {"vlm_type": "Qwen3VL"})
    assert "vision" in axllm_model(tmp_path).capabilities
