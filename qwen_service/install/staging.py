"""The staging folder in which a model is assembled before it is installed: `<models_dir>/.partial/NAME@SOURCE`.

A model folder gets its own name only when it is complete and verified, by one rename. Files that an
interrupted pull left in the staging folder are used by the next pull of the same source.
"""

import fcntl
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from qwen_service.errors import InstallError
from qwen_service.install.progress import human_bytes
from qwen_service.models.record import InstallRecord

SPARE_BYTES = 64_000_000  # bytes of the disk that stay free for other programs


class Staging:
    def __init__(self, models_dir: Path, name: str, source: str) -> None:
        self.models_dir, self.name = models_dir, name
        self.folder = models_dir / ".partial" / f"{name}@{source}"
        self._cleanup = ExitStack()

    def __enter__(self) -> "Staging":
        """Raises InstallError when another process is installing the same model, and OSError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self._cleanup.enter_context((self.folder.parent / f"{self.name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._cleanup.close()
            raise InstallError(f"{self.name} is being installed by another process already.") from None
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._cleanup.close()

    def staged_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def need_space(self, total: int) -> None:
        """Raise InstallError if the disk is too small. `total`: bytes of the finished folder, existing ones included."""
        needed = total - self.staged_bytes() + SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise InstallError(
                f"{self.name} needs {human_bytes(needed)} on the disk of {self.models_dir},"
                f" {human_bytes(free)} are free."
                " Make room, or set models_dir to a folder on another disk."
            )

    def install(self, record: InstallRecord, programs: tuple[str, ...]) -> Path:
        """Write the record into the folder, and move the folder to its place."""
        self._drop_what_is_not_in(record)
        for program in programs:
            (self.folder / program).chmod(0o755)
        record.save(self.folder)
        self._give_to_owner_of_models()
        target = self.models_dir / self.name
        self._replace(target)
        for leftover in self.folder.parent.glob(f"{self.name}@*"):
            shutil.rmtree(leftover)
        return target

    def _drop_what_is_not_in(self, record: InstallRecord) -> None:
        for path in sorted(self.folder.rglob("*"), reverse=True):  # files before their folder
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif str(path.relative_to(self.folder)) not in record.files:
                path.unlink()

    def _give_to_owner_of_models(self) -> None:
        """Give the files to the owner of models_dir: after a pull by root the API runtime must map its embedding file writable."""
        if os.geteuid() == 0:
            owner = self.models_dir.stat()
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def _replace(self, target: Path) -> None:
        if target.exists() or target.is_symlink():
            old = self.folder.parent / f"{self.name}@old"
            if old.exists():
                shutil.rmtree(old)
            target.rename(old)
        self.folder.rename(target)
