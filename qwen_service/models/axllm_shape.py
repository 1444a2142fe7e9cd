"""Which files a folder in axllm's form consists of, as its config.json says. IO-free.

The vendor's conversions differ in number and names of their files; a list in a manifest would be wrong with the next one.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from qwen_service.errors import InstallError

CONFIG = "config.json"
POST = "filename_post_axmodel"  # the key by which a config.json is known to be axllm's
LAYERS, LAYER_COUNT = "template_filename_axmodel", "axmodel_num"
MOST_LAYERS = 1000
_NUMBER = re.compile(r"%0?\d*d")


def read_config(content: str | bytes) -> Mapping[str, Any] | None:
    """None where it is no config.json of axllm's."""
    try:
        config = json.loads(content)
    except ValueError:
        return None
    return config if isinstance(config, dict) and POST in config else None


def needed_files(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Without these it cannot load: its layers, and what else a `filename_` key names."""
    names = [CONFIG]
    template, count = config.get(LAYERS), config.get(LAYER_COUNT)
    if isinstance(template, str) and isinstance(count, int) and _NUMBER.search(template):
        names += (template % number for number in range(min(count, MOST_LAYERS)))
    names += (value for key, value in config.items() if key.startswith("filename_") and isinstance(value, str))
    return tuple(dict.fromkeys(inner for name in names if (inner := _inner(name))))


def wanted_files(config: Mapping[str, Any], there: Collection[str]) -> tuple[str, ...]:
    """Of the files that a repository has, those that the model uses. Raises InstallError where one is missing."""
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
    """The path inside the folder; nothing where it is none."""
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
