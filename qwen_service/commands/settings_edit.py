"""Changes single settings in config.yaml and keeps everything else, comments included."""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import yaml

from qwen_service.config import ConfigError

NEW_FILE_MODE = 0o644


def set_in_file(path: Path, values: Mapping[str, str | int]) -> None:
    """Set the values, at once or not at all: a reader sees the old file or the new one. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for key, value in values.items():
            lines = _with_line(lines, key, f"{key}: {_scalar(value)}")
        _replace(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}. Use sudo, or name another file with --config."
        ) from None


def _with_line(lines: list[str], key: str, line: str) -> list[str]:
    """Put the line in place of the setting, else under a comment that shows it, else at the end."""
    for pattern in (rf"{key}\s*:", rf"#\s*{key}\s*:"):
        for number, old in enumerate(lines):
            if re.match(pattern, old):
                kept = [] if pattern.startswith(key) else [old]
                return [*lines[:number], *kept, line, *lines[number + 1 :]]
    return [*lines, line]


def _scalar(value: str | int) -> str:
    return str(yaml.safe_dump(value)).splitlines()[0]


def _replace(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new-by-setup")
    new.write_text(text, encoding="utf-8")
    if path.exists():
        info = path.stat()
        new.chmod(stat.S_IMODE(info.st_mode))
        if os.geteuid() == 0:
            os.chown(new, info.st_uid, info.st_gid)
    else:
        new.chmod(NEW_FILE_MODE)
    new.rename(path)
