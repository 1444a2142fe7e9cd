"""What commands share: every setting as a flag (--queue-size for queue_size), the folders, the kind of installation."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from qwen_service.config import RENAMED, ConfigError, describe, load_settings
from qwen_service.settings import Settings


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
