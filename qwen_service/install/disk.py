"""Explains errors of the disk, with the cure."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen_service.errors import InstallError
from qwen_service.install.progress import human_bytes

CURES = {
    errno.ENOSPC: "the disk is full. Make room, or set models_dir to a folder on another disk.",
    errno.EDQUOT: "the quota of this user is used up. Make room, or set models_dir to a folder on another disk.",
    errno.EFBIG: "the file system takes no file of this size (FAT takes 4 GB). Set models_dir to a folder on another disk.",
    errno.EROFS: "the file system is mounted read-only: a damaged SD card is, too. `dmesg` says why.",
    errno.EACCES: "this user may not write there. Use sudo, or set models_dir to a folder of your own.",
    errno.EPERM: "this user may not do that there. Use sudo, or set models_dir to a folder of your own.",
    errno.EIO: "the disk cannot be read or written. `dmesg` says why; an SD card that does so is at its end.",
}


def is_disk_fault(error: OSError) -> bool:
    return error.errno in CURES


@contextmanager
def disk_faults_told(what: str, folder: Path) -> Iterator[None]:
    """Turn every OSError into an InstallError with the path, the reason and the cure."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        cure = CURES.get(error.errno or 0, f"{error.strerror or error}.")
        raise InstallError(f"{what}: {place}: {cure}{_free(error, folder)}") from error


def _free(error: OSError, folder: Path) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    return f" Free there: {human_bytes(free_bytes(folder))}. What was fetched is kept."


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
