"""Every setting as a flag: --queue-size for queue_size."""

import argparse
from pathlib import Path
from typing import Any

from qwen_service.config import Settings, describe, load_settings


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings file (default: ./config.yaml, /etc/qwen/config.yaml)"
    )
    group = parser.add_argument_group(
        "settings", "Flags win over QWEN_* environment variables, these over config.yaml."
    )
    for key in Settings.model_fields:
        group.add_argument(
            "--" + key.replace("_", "-"), dest=key, metavar="VALUE", help=describe(key).replace("%", "%%")
        )


def settings_from(options: argparse.Namespace) -> Settings:
    """Raises ConfigError."""
    given: dict[str, Any] = {key: getattr(options, key, None) for key in Settings.model_fields}
    return load_settings(given, config_file=options.config)
