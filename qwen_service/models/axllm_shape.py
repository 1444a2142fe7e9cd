"""Finds the files of a folder in axllm's form from its config.json. IO-free.

The vendor's conversions differ in their files, so a list in a manifest would be wrong for the next conversion.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from qwen_service.errors import InstallError

CONFIG = "config.json"
POST = "filename_post_axmodel"  # a config.json with this key is axllm's
LAYERS, LAYER_COUNT = "template_filename_axmodel", "axmodel_num"
MOST_LAYERS = 1000
_NUMBER = re.compile(r"%0?\d*d")


def read_config(content: str | bytes) -> Mapping[str, Any] | None:
    """Read a config.json; None when it is not axllm's."""
    try:
        config = json.loads(content)
    except ValueError:
        return None
    return config if isinstance(config, dict) and POST in config else None


def needed_files(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The files without which axllm cannot load: the layers, and everything that a `filename_` key names."""
    names = [CONFIG]
    template, count = config.get(LAYERS), config.get(LAYER_COUNT)
    if isinstance(template, str) and isinstance(count, int) and _NUMBER.search(template):
        names += (template % number for number in range(min(count, MOST_LAYERS)))
    names += (value for key, value in config.items() if key.startswith("filename_") and isinstance(value, str))
    return tuple(dict.fromkeys(inner for name in names if (inner := _inner(name))))


def wanted_files(config: Mapping[str, Any], there: Collection[str]) -> tuple[str, ...]:
    """The files of a repository that the model uses. Raises InstallError when one is missing."""
    needed = needed_files(config)
    if missing := [name for name in needed if name not in there]:
        raise InstallError(f"{CONFIG} names files that are not there: {', '.join(missing[:5])}.")
    named = {inner for value in _strings(config) if (inner := _inner(value))}
    folders = tuple(f"{name}/" for name in named)
    numbered = [re.compile(_NUMBER.sub(r"\\d+", re.escape(name))) for name in named if _NUMBER.search(name)]
    also = (
        path
        for path in there
        if path in named or path.startswith(folders) or any(one.fullmatch(path) for one in numbered)
    )
    return tuple(dict.fromkeys([*needed, *sorted(also)]))


def has_eyes(config: Mapping[str, Any]) -> bool:
    return bool(config.get("vlm_type"))


def _inner(name: str) -> str:
    """The path inside the folder; empty when it would leave the folder."""
    if not name or "://" in name or "\0" in name or len(name) > 500:
        return ""
    path = PurePosixPath(name)
    return "" if path.is_absolute() or ".." in path.parts or str(path) == "." else str(path)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
