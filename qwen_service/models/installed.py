"""A model and its folder on disk."""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen_service.errors import InstallError
from qwen_service.models.axllm_shape import CONFIG, has_eyes, needed_files, read_config
from qwen_service.models.machine import Machine
from qwen_service.models.record import load_record
from qwen_service.models.spec import AXLLM, Capability, FileSpec, ModelSpec

TOKENIZER_FLAG = b"url_tokenizer_model"
CHUNK = 1 << 20  # bytes
# A file that git-lfs has not fetched begins with this line; it is about 130 bytes long.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class InstalledModel:
    spec: ModelSpec
    folder: Path

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def gguf(self) -> Path:
        """The GGUF file of a llamacpp model (the first part of a split one)."""
        found = next((path for path in self.paths() if path.suffix == ".gguf" and not is_mmproj(path)), None)
        if found is None:
            raise InstallError(f"{self.name} has no GGUF file: it runs on {self.spec.runtime}.")
        return found

    @property
    def mmproj(self) -> Path | None:
        """llama.cpp's picture encoder for this model; None when there is none."""
        return next((path for path in self.paths() if is_mmproj(path)), None)

    @property
    def tokenizer_file(self) -> Path | None:
        return self.folder / self.spec.tokenizer / "tokenizer.json" if self.spec.tokenizer is not None else None

    @cached_property
    def size(self) -> int:
        """Size on disk in bytes."""
        return sum(found.st_size for path in self.paths() if (found := status(path)) is not None)

    @cached_property
    def modified(self) -> float:
        """Time of installation, in seconds since 1970."""
        return max((found.st_mtime for path in self.paths() if (found := status(path)) is not None), default=0.0)

    @cached_property
    def digest(self) -> str:
        """64 hexadecimal digits that identify the content, computed without reading gigabytes."""
        record = load_record(self.folder)
        if record is not None:
            identity = sorted((path, file.sha256, file.size) for path, file in record.files.items())
        else:
            there = ((file, found) for file, path in self._files() if (found := status(path)) is not None)
            identity = sorted((file.path, file.sha256 or "", found.st_size) for file, found in there)
        return hashlib.sha256(repr((self.name, identity)).encode()).hexdigest()

    @cached_property
    def capabilities(self) -> frozenset[Capability]:
        """The capabilities in its manifest, and those that its folder shows."""
        config = self._axllm_config()
        sees = self.mmproj is not None or (config is not None and has_eyes(config))
        return self.spec.capabilities | ({"vision"} if sees else set())

    def paths(self) -> list[Path]:
        return [path for _, path in self._files()]

    def missing_files(self) -> list[str]:
        """Files that are missing, or have another size than in the manifest. What this user may not look at is missing, too."""
        return [
            file.path
            for file, path in self._files()
            if (found := status(path)) is None or file.size not in (None, found.st_size)
        ]

    def unreadable(self) -> Path | None:
        """The first of its folders and files that is there, but which this user may not read."""
        for folder in (self.folder, *(self.folder / name for name in sorted(self.spec.folders))):
            if is_closed(folder):
                return folder
        return next((path for path in self.paths() if status(path) and not os.access(path, os.R_OK)), None)

    def lfs_pointers(self) -> list[str]:
        """Files that are still the text pointers of a `git clone` without git-lfs."""
        return [file.path for file, path in self._files() if is_lfs_pointer(path)]

    def program(self, machine: Machine) -> str:
        """The vendor's program: a path in the folder; `axllm` without a path when the folder has none, so PATH is searched."""
        candidates = self.spec.programs_for(machine) or (AXLLM,)
        there = (self.folder / name for name in candidates if status(self.folder / name) is not None)
        path = next(there, self.folder / candidates[0])
        return AXLLM if path.name == AXLLM and not path.exists() else str(path.absolute())

    def command(self, machine: Machine, values: Mapping[str, str]) -> list[str]:
        """Program and arguments, with `{key}` replaced by values[key]: tokenizer_url, devices, system_prompt, port."""
        known = {"folder": str(self.folder.absolute()), **values}
        return [self.program(machine), *(_fill(argument, known) for argument in self._arguments(machine))]

    def has_own_tokenizer(self, machine: Machine) -> bool:
        """Whether its program is one of 2026, which tokenizes by itself and has no --url_tokenizer_model.

        The name of a flag is searched in the program file, so that the program need not be started.
        """
        path = Path(self.program(machine))
        return os.access(path, os.R_OK) and not is_lfs_pointer(path) and not contains(path, TOKENIZER_FLAG)

    def can_be_told(self, key: str, machine: Machine) -> bool:
        """Whether its program has a flag for `devices` or `port`; most builds have port 8000 compiled in."""
        return any("{" + key + "}" in argument for argument in self._arguments(machine))

    def _arguments(self, machine: Machine) -> tuple[str, ...]:
        program = self.spec.programs.get(machine.kind) if machine.kind is not None else None
        return self.spec.arguments + (program.arguments if program else ())

    def _files(self) -> list[tuple[FileSpec, Path]]:
        listed = {file.path: file for file in self.spec.files}
        if (config := self._axllm_config()) is not None:
            listed = {name: FileSpec(name) for name in needed_files(config)} | listed
        return [(file, self.folder / file.path) for file in listed.values()]

    def _axllm_config(self) -> Mapping[str, Any] | None:
        if self.spec.runtime != "axllm":
            return None
        try:
            return read_config((self.folder / CONFIG).read_bytes())
        except OSError:  # missing files are reported elsewhere
            return None


def is_mmproj(path: Path) -> bool:
    """Whether the file is a picture encoder, by the name that llama.cpp's converter gives it."""
    return path.suffix == ".gguf" and "mmproj" in path.name.lower()


def status(path: Path) -> os.stat_result | None:
    """The status of a file; None when it is missing, or this user may not look at it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def is_closed(folder: Path) -> bool:
    """Whether it is a folder whose files this user may not reach."""
    return os.path.isdir(folder) and not os.access(folder, os.X_OK)


def cannot_read(path: Path) -> str:
    return f"{path} cannot be read by this user. `{opening(path)}` lets every user read it."


def opening(path: Path) -> str:
    """The command that lets every user read the file, or the folder with all that is in it."""
    return f"sudo chmod -R a+rX {path}"


def is_lfs_pointer(path: Path) -> bool:
    if status(path) is None or not os.access(path, os.R_OK):
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def contains(path: Path, text: bytes) -> bool:
    """Whether the file contains these bytes."""
    with path.open("rb") as file:
        rest = b""
        while block := file.read(CHUNK):
            if text in rest + block:
                return True
            rest = block[-len(text) :]
    return False


def pointer_advice(pointers: list[str]) -> str:
    return (
        f"{len(pointers)} files are text pointers of git-lfs, not the files themselves ({pointers[0]}, ...)."
        " Cure: in that folder `sudo apt install git-lfs && git lfs pull`, or let `qwen-service pull` download it."
    )


def _fill(argument: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        argument = argument.replace("{" + key + "}", value)
    return argument
