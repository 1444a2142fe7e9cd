"""The record in a model's folder of what was installed: its source, and size and sha256 of every file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from qwen_service.errors import InstallError

FILE_NAME = ".qwen-service.json"


@dataclass(frozen=True, slots=True)
class RecordedFile:
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class InstallRecord:
    name: str
    source: str  # repository, wheel, or folder it was adopted from
    revision: str  # commit of the repository, version of the wheel, or ""
    installed: str  # ISO 8601
    files: Mapping[str, RecordedFile]

    def save(self, folder: Path) -> None:
        (folder / FILE_NAME).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def new_record(name: str, source: str, revision: str, files: Mapping[str, RecordedFile]) -> InstallRecord:
    return InstallRecord(name, source, revision, datetime.now(UTC).isoformat(timespec="seconds"), files)


def load_record(folder: Path) -> InstallRecord | None:
    """Read the record; None when there is none, as in a folder that somebody copied by hand."""
    path = folder / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {name: RecordedFile(**entry) for name, entry in content.pop("files").items()}
        return InstallRecord(**content, files=files)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise InstallError(f"{path} cannot be read by this user.") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InstallError(f"{path} is damaged ({error}). Delete it and run `qwen-service verify`.") from None
