"""`qwen-service build-engine`: the archive is made here, cmake is a script, the rest is real."""

import argparse
import asyncio
import hashlib
import io
import re
import tarfile
from pathlib import Path

import pytest

from qwen_service.commands import build_engine
from qwen_service.commands.build_engine import EngineSpeed, measure
from qwen_service.errors import ChecksumMismatch, InstallError
from qwen_service.install.engine_source import PINNED, EngineSource, fetch_source, unpack
from qwen_service.install.progress import LogSink
from qwen_service.settings import Settings
from tests import ROOT

INNER = "thing-1/thirdparty/llama.cpp"
CMAKE = """\
#!/bin/sh
echo "$@" >> "$0.calls"
case $1 in
  -S) [ -f "$2/CMakeLists.txt" ] ;;
  --build)
    [ ! -e "$0.broken" ] || { echo "error: no such instruction"; exit 2; }
    echo "[ 42%] Building"; echo "[100%] Built"
    mkdir -p "$2/bin"; printf '#!/bin/sh\\necho engine\\n' > "$2/bin/llama-server"; chmod +x "$2/bin/llama-server" ;;
esac
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "thing-1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in (f"{INNER}/CMakeLists.txt", f"{INNER}/LICENSE", f"{INNER}/../../../evil", "thing-1/setup.py"):
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"x\n"))
        link = tarfile.TarInfo(f"{INNER}/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def source_of(archive: Path) -> EngineSource:
    content = archive.read_bytes()
    return EngineSource(f"http://127.0.0.1:9/{archive.name}", len(content), hashlib.sha256(content).hexdigest(), INNER)


@pytest.fixture
def cmake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("cmake", CMAKE), ("c++", "#!/bin/sh\n")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin/cmake"


def build(archive: Path, folder: Path, out: io.StringIO | None = None) -> Path:
    return build_engine.build(source_of(archive), folder, LogSink(out or io.StringIO()), local=archive, jobs=2)


def test_the_pinned_sources_are_those_of_the_built_in_engine() -> None:
    (version,) = re.findall(r"^xllamacpp==(.+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert PINNED.name == f"xllamacpp-{version}.tar.gz"
    assert PINNED.inner == f"xllamacpp-{version}/thirdparty/llama.cpp"


def test_only_llama_cpp_is_unpacked_and_nothing_leaves_the_folder(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in/here"
    unpack(archive, source_of(archive), folder)
    assert sorted(path.name for path in folder.rglob("*")) == ["CMakeLists.txt", "LICENSE"]
    assert not list(tmp_path.rglob("evil"))


def test_another_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ChecksumMismatch, match="is not xllamacpp-"):
        fetch_source(PINNED, tmp_path, LogSink(io.StringIO()), local=archive)


def test_an_engine_is_built_and_installed_with_its_licence(archive: Path, tmp_path: Path, cmake: Path) -> None:
    out = io.StringIO()
    program = build(archive, tmp_path / "engine", out)
    assert program.read_text() == "#!/bin/sh\necho engine\n"
    assert sorted(path.name for path in program.parent.iterdir()) == ["LICENSE.llama.cpp", "llama-server"]
    configured, built = cmake.with_suffix(".calls").read_text().splitlines()
    assert "-DGGML_NATIVE=ON" in configured
    assert built.endswith("--target llama-server -j 2")
    assert "100 %" in out.getvalue()


def test_a_build_that_fails_keeps_the_engine_that_is_there(archive: Path, tmp_path: Path, cmake: Path) -> None:
    program = build(archive, tmp_path / "engine")
    program.write_text("the one before")
    cmake.with_suffix(".broken").touch()
    with pytest.raises(InstallError, match="no such instruction"):
        build(archive, tmp_path / "engine")
    assert program.read_text() == "the one before"


def test_what_is_missing_to_build_is_told_with_the_command(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InstallError, match=r"cmake is missing\. Install it: sudo apt install cmake g\+\+ make"):
        build(archive, tmp_path / "engine")


@pytest.mark.parametrize(("after", "switched"), [(EngineSpeed(200, 10), True), (EngineSpeed(90, 12), False)])
def test_the_settings_name_the_new_engine_if_it_was_seen_to_be_faster(
    tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch, after: EngineSpeed, switched: bool
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/small.gguf").symlink_to(smollm2)
    config = tmp_path / "config.yaml"
    config.write_text(f"state_dir: {tmp_path / 'state'}\n")

    async def measured(settings: Settings) -> EngineSpeed:
        return after if settings.llama_server else EngineSpeed(100, 10)

    monkeypatch.setattr(build_engine, "measure", measured)
    options = argparse.Namespace(no_measure=False, models_dir=tmp_path / "models", config=config)
    assert build_engine._switch(options, tmp_path / "llama-server") == 0
    assert (f"llama_server: {tmp_path / 'llama-server'}" in config.read_text()) is switched


def test_a_speed_is_measured_with_the_real_engine(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_engine, "PROMPT", build_engine.PROMPT[:400])
    monkeypatch.setattr(build_engine, "REPLY_TOKENS", 8)
    settings = Settings(model_path=smollm2, state_dir=tmp_path / "state", models_dir=tmp_path / "models")
    (tmp_path / "state").mkdir(mode=0o700)
    speed = asyncio.run(measure(settings))
    assert speed.prefill > speed.decode > 0
    assert re.fullmatch(r"reads \d+, writes [\d.]+ tokens/s", str(speed))
