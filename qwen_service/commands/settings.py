"""What commands share: every setting as a flag (--queue-size for queue_size), the folders, the kind of installation.

`set_in_file` changes single settings in config.yaml and keeps everything else, comments included.
"""

import argparse
import os
import re
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from qwen_service.config import RENAMED, ConfigError, describe, load_settings
from qwen_service.settings import Settings

NEW_FILE_MODE = 0o644


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    files = "settings file (default: ./config.yaml, /etc/qwen/config.yaml)"
    parser.add_argument("--config", type=Path, metavar="FILE", help=files)
    order = "Flags win over QWEN_* environment variables, and these over config.yaml."
    group = parser.add_argument_group("settings", order)
    shown = {key: describe(key).replace("%", "%%") for key in Settings.model_fields}
    for key, text in {**shown, **dict.fromkeys(RENAMED, argparse.SUPPRESS)}.items():
        group.add_argument("--" + key.replace("_", "-"), dest=key, metavar="VALUE", help=text)


def settings_from(options: argparse.Namespace) -> Settings:
    """Load the settings, with the flags of the command line. Raises ConfigError."""
    given: dict[str, Any] = {key: getattr(options, key, None) for key in (*Settings.model_fields, *RENAMED)}
    return load_settings(given, config_file=options.config)


def make_folders(settings: Settings) -> None:
    """Make the folders of the settings. Raises ConfigError when one cannot be written."""
    _make("state_dir", settings.state_folder, mode=0o700)
    _make("log_dir", settings.log_folder, mode=0o777)  # less the umask


def _make(name: str, folder: Path, *, mode: int) -> None:
    reason = "no permission, or a read-only disk"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        reason = error.strerror or str(error)
    if not os.access(folder, os.W_OK | os.X_OK):
        flag = "--" + name.replace("_", "-")
        raise ConfigError(
            f"{folder} cannot be written: {reason}. Name another folder with {flag} or QWEN_{name.upper()}."
        )


def is_packaged() -> bool:
    """Whether this runs from the Debian package, or the Docker image, which has the same folders."""
    return Path(sys.prefix) == Path("/opt/qwen/venv")


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
