"""The vendor's main_api of 2026 tokenizes by itself: it is recognised and refused before it is started."""

from pathlib import Path

import pytest

from qwen_service.errors import StartFailed
from qwen_service.models.installed import CHUNK, InstalledModel, contains
from qwen_service.models.machine import Machine
from qwen_service.models.spec import FileSpec, ModelSpec, Program
from qwen_service.runtimes.axera.bring_up import loaders
from qwen_service.settings import Settings

PI = Machine(root=Path("/nowhere"), machine="aarch64")
SPEC = ModelSpec(
    "qwen3-4b", "ax_api", (FileSpec("post.axmodel"),), programs={"axcl_arm64": Program(("main_api_axcl_aarch64",))}
)
OLD = b"\x7fELF" + bytes(100) + b"\0--url_tokenizer_model\0" + bytes(100)
NEW = b"\x7fELF" + bytes(100) + b"\0--tokenizer_path\0/v1/models\0" + bytes(100)


@pytest.mark.parametrize(
    ("program", "own"), [(OLD, False), (NEW, True), (b"version https://git-lfs.github.com/spec/v1", False)]
)
def test_a_flag_that_it_lacks_tells(program: bytes, own: bool, tmp_path: Path) -> None:
    (tmp_path / "main_api_axcl_aarch64").write_bytes(program)
    assert InstalledModel(SPEC, tmp_path).has_own_tokenizer(PI) is own


def test_a_program_that_is_missing_is_another_fault(tmp_path: Path) -> None:
    assert not InstalledModel(SPEC, tmp_path).has_own_tokenizer(PI)


@pytest.mark.parametrize("before", [0, CHUNK - 5, CHUNK, 2 * CHUNK - 1])
def test_the_flag_is_found_wherever_it_stands(before: int, tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(bytes(before) + b"needle" + bytes(CHUNK))
    assert contains(tmp_path / "program", b"needle")
    assert not contains(tmp_path / "program", b"haystack")


async def test_it_is_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    (tmp_path / "main_api_axcl_aarch64").write_bytes(NEW)
    settings = Settings(state_dir=tmp_path / "state")
    (load,) = loaders(InstalledModel(SPEC, tmp_path), settings, PI).values()
    with pytest.raises(
        StartFailed, match=r"main_api_axcl_aarch64 is the vendor's program of 2026.*qwen3-4b-axllm"
    ) as raised:
        await load(lambda _: None)
    assert raised.value.permanent
