"""Makes docs/configuration.md of the settings' help: python -m qwen_service.commands.config_docs > docs/configuration.md"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from qwen_service.config import DEFAULT_FILES
from qwen_service.settings import ENV_PREFIX, Settings

A_YEAR = 86_400 * 365  # seconds; upper bounds from here on are left out of the page
# The setting that begins a section.
SECTIONS = {
    "host": "Where it listens",
    "model": "Model and folders",
    "simulate": "Cards and their models",
    "llama_server": "Engine on the CPU",
    "speech_to_text": "Ears and a voice",
    "queue_size": "Requests, waiting and time limits",
    "body_timeout": "Connections and protection",
    "background_markers": "Background work",
    "axcl_smi": "Watching the cards",
    "unknown_model": "Names of models",
    "log_level": "Logs",
}
INTRODUCTION = f"""\
# Configuration

The service takes the value of a setting from the first of these places that has it:

1. a flag: `--queue-size 32`
2. an environment variable: `{ENV_PREFIX}QUEUE_SIZE=32`
3. the first of these files that exists: {", ".join(f"`{path}`" for path in DEFAULT_FILES)} (or the one named by `--config`
   or `QWEN_CONFIG`), with lines such as `queue_size: 32`
4. its default

An unknown name or an impossible value stops the start, with a message that names its source and what is expected.
Lists are written with commas (`a,b`), pairs as `name=value,name=value`; config.yaml takes YAML lists
and maps as well. All durations are in seconds. `qwen-service serve --help` shows these settings in the terminal.
"""


def configuration_page() -> str:
    return INTRODUCTION + "".join(_lines())


def _lines() -> Iterator[str]:
    for name, setting in Settings.model_fields.items():
        if name in SECTIONS:
            yield f"\n## {SECTIONS[name]}\n\n| setting | default | values | what it does |\n|---|---|---|---|\n"
        text = (setting.description or "").replace("|", "\\|")
        yield f"| `{name}` | {_shown(setting.default)} | {_values(setting)} | {text} |\n"


def _shown(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case tuple() if value:
            return f"`{','.join(map(str, value))}`"
        case tuple() | {}:
            return "empty"
        case _:
            return f"`{value}`"


def _values(setting: FieldInfo) -> str:
    kind = setting.annotation
    members = get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)
    kind = next(member for member in members if member is not type(None))
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    return _kind_name(kind) + _bounds(setting)


def _kind_name(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if issubclass(origin, tuple):
        item = get_args(kind)[0]
        return "numbers" if (get_args(item) or (item,))[0] is int else "list"
    names: Mapping[type, str] = {
        bool: "true, false",
        int: "integer",
        float: "number",
        str: "text",
        Path: "path",
        dict: "pairs",
    }
    return names[origin]


def _bounds(setting: FieldInfo) -> str:
    signs = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    found = [
        f"{word} {bound:g}" if isinstance(bound, float) else f"{word} {bound}"
        for entry in setting.metadata
        for sign, word in signs.items()
        if (bound := getattr(entry, sign, None)) is not None and bound < A_YEAR
    ]
    if any(bound.startswith("above") for bound in found):  # narrower than the `from 0` of its type
        found = [bound for bound in found if not bound.startswith("from")]
    return f" {' '.join(found)}" if found else ""


if __name__ == "__main__":
    sys.stdout.write(configuration_page())
