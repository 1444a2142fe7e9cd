"""Where the settings of this process come from: flag > QWEN_* environment > config.yaml > default.

An unknown key is refused, with the nearest known one named.
"""

import difflib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qwen_service.errors import ServiceError
from qwen_service.settings import ENV_PREFIX, Settings

log = logging.getLogger(__name__)

# Old name -> new name. An entry stays for a year after the release that brought the new name. Empty so far.
RENAMED: Mapping[str, str] = {}


def with_new_names(
    values: Mapping[str, Any], source: str, spell: Callable[[str], str], renamed: Mapping[str, str]
) -> dict[str, Any]:
    """Replace old names by new ones. When both are given, the value of the new name counts."""
    found = {key: value for key, value in values.items() if key not in renamed}
    for old, value in values.items():
        if old in renamed:
            new = renamed[old]
            log.warning("%s: %s is now called %s; the old name still works. Change it", source, spell(old), spell(new))
            found.setdefault(new, value)
    return found


DEFAULT_FILES = (Path("config.yaml"), Path("/etc/qwen/config.yaml"))
# Variables of the scripts, the command line and the tests: not settings of the service.
OTHER_ENVIRONMENT = ("QWEN_CONFIG", "QWEN_VENV", "QWEN_TEST_", "QWEN_SERVICE_")


class ConfigError(ServiceError):
    """A setting is unknown or has an impossible value. The message names source, key, value and cure."""


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    config_file: Path | None = None,
    renamed: Mapping[str, str] = RENAMED,
) -> Settings:
    """Load the settings of this process. `flags` win over all other sources. Raises ConfigError."""
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    given = with_new_names(given, "command line", _as_flag, renamed)
    _refuse_unknown(given, "command line", _as_flag)
    old = {key: os.environ[_as_variable(key)] for key in _environment_keys() if key in renamed}
    in_environment = with_new_names(old, "environment", _as_variable, renamed)
    _refuse_unknown((key for key in _environment_keys() if key not in renamed), "environment", _as_variable)
    path, values = _read_file(config_file)
    values = with_new_names(values, str(path), str, renamed)
    _refuse_unknown(values, str(path), str)
    elsewhere = {**values, **in_environment}
    beneath = {key: value for key, value in elsewhere.items() if key not in given and not _in_environment(key)}
    try:
        return Settings(**{**beneath, **given})
    except ValidationError as error:
        raise ConfigError(_explain(error, given, values, path)) from None


def _as_flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _as_variable(key: str) -> str:
    return ENV_PREFIX + key.upper()


def describe(key: str) -> str:
    return Settings.model_fields[key].description or ""


def settings_file(config_file: Path | None = None) -> Path:
    """The path of the configuration file, which need not exist."""
    named = _named_file(config_file)
    return named or next((candidate for candidate in DEFAULT_FILES if candidate.is_file()), DEFAULT_FILES[0])


def _named_file(config_file: Path | None) -> Path | None:
    return config_file or (Path(os.environ["QWEN_CONFIG"]) if os.environ.get("QWEN_CONFIG") else None)


def _read_file(config_file: Path | None) -> tuple[Path, dict[str, Any]]:
    named, path = _named_file(config_file), settings_file(config_file)
    if named is None and not path.is_file():
        return path, {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Name another file with --config.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if content is None:
        return path, {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected lines of the form `key: value`, found {type(content).__name__}.")
    return path, {str(key): value for key, value in content.items()}


def _environment_keys() -> list[str]:
    return [
        name.removeprefix(ENV_PREFIX).lower()
        for name in os.environ
        if name.startswith(ENV_PREFIX) and not name.startswith(OTHER_ENVIRONMENT)
    ]


def _in_environment(key: str) -> bool:
    return _as_variable(key) in os.environ


def _refuse_unknown(keys: Iterable[str], source: str, spell: Callable[[str], str]) -> None:
    for key in keys:
        if key not in Settings.model_fields:
            near = difflib.get_close_matches(key, Settings.model_fields, n=1, cutoff=0.5)
            hint = f" Did you mean {spell(near[0])}?" if near else " docs/configuration.md lists all settings."
            raise ConfigError(f"{source}: unknown setting {spell(key)}.{hint}")


def _explain(error: ValidationError, flags: Mapping[str, Any], values: Mapping[str, Any], path: Path) -> str:
    first = error.errors()[0]
    key = str(first["loc"][0])
    if key in flags:
        source = _as_flag(key)
    elif _in_environment(key):
        source = _as_variable(key)
    else:
        source = f"{path}: {key}"
    value = values.get(key, first["input"]) if key not in flags else flags[key]
    return f"{source}: {value!r} is not allowed: {first['msg'].removeprefix('Value error, ')}. ({describe(key)})"
