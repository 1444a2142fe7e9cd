"""Manifest text -> ModelSpec. Every mistake is named by file, key and value, with what was expected instead."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from qwen_service.errors import ServiceError
from qwen_service.models.manifest_values import SamplingKeys, given
from qwen_service.models.spec import FileSpec, HubSource, ModelSpec, Program, WheelSource

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NOT_KEYS = ("HubSource", "WheelSource", "[key]")  # what pydantic adds to the place of a mistake
_INNER = {
    "files": FileSpec,
    "programs": Program,
    "sampling": SamplingKeys,
    "HubSource": HubSource,
    "WheelSource": WheelSource,
}


class ManifestError(ServiceError):
    """A manifest says something that cannot be. The message names file, key, value and expectation."""


def read_manifest(path: Path) -> ModelSpec:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)  # 9 times as fast
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: is not valid YAML: {error}") from None
    return parse_manifest(content, str(path))


def parse_manifest(content: object, origin: str) -> ModelSpec:
    try:
        spec = _rules().validate_python(given(content))
    except ValidationError as error:
        raise ManifestError(f"{origin}: {_explain(error.errors(include_url=False)[0])}") from None
    for mistake in _contradictions(spec):
        raise ManifestError(f"{origin}: {mistake}")
    return replace(spec, files=tuple(file for listed in spec.files for file in _spelled_out(listed)))


@cache
def _rules() -> TypeAdapter[ModelSpec]:
    return TypeAdapter(ModelSpec)


def _explain(mistake: ErrorDetails) -> str:
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in mistake["loc"] if part not in _NOT_KEYS
    )
    where = place.removeprefix(".") or "manifest"
    if mistake["type"] == "missing":
        return f"{where}: is missing."
    return f"{where}: {mistake['input']!r} is not allowed, expected {_expectation(mistake)}."


def _expectation(mistake: ErrorDetails) -> str:
    match mistake["type"]:
        case "expected":
            return str(mistake["ctx"]["what"])
        case "literal_error":
            return f"one of {mistake['ctx']['expected']}".replace(" or ", ", ").replace("'", "")
        case "unexpected_keyword_argument" | "extra_forbidden":
            return _right_key(mistake["loc"])
        case "dataclass_type" | "dict_type" | "mapping_type":
            return "lines of the form `key: value`"
        case "too_short":
            return "at least one"
        case _:
            return "a list"


def _right_key(place: tuple[int | str, ...]) -> str:
    owner: Any = next((_INNER[str(part)] for part in reversed(place[:-1]) if part in _INNER), ModelSpec)
    keys = list(owner.__annotations__)
    near = difflib.get_close_matches(str(place[-1]), keys, n=1, cutoff=0.6)
    return f"the key {near[0]}" if near else f"one of {', '.join(keys)}"


def _contradictions(spec: ModelSpec) -> Iterator[str]:
    if spec.name == "manifests":
        yield "name: 'manifests' is the folder of the manifests, expected another name."
    if not spec.files and spec.runtime != "axllm":
        yield "files: is empty, expected at least one file."
    for place, file in enumerate(spec.files):
        if _RANGE.search(file.path) and (file.size or file.sha256):
            yield f"files[{place}].path: {file.path!r} is not allowed, expected one file where a size or sha256 is given."
    if spec.runtime == "llamacpp" and not any(file.path.endswith(".gguf") for file in spec.files):
        yield "files: the runtime llamacpp needs a .gguf file, none is listed."
    if spec.runtime in ("ax_repl", "ax_api") and not spec.programs:
        yield f"programs: the runtime {spec.runtime} needs a program for one kind of machine."
    if spec.runtime in ("ax_repl", "ax_api") and spec.tokenizer is None:
        yield f"tokenizer: the runtime {spec.runtime} needs the folder of a tokenizer.json."


def _spelled_out(file: FileSpec) -> list[FileSpec]:
    """layer{0..27}.axmodel is 28 files."""
    span = _RANGE.search(file.path)
    if span is None:
        return [file]
    numbers = range(int(span[1]), int(span[2]) + 1)
    return [FileSpec(file.path[: span.start()] + str(number) + file.path[span.end() :]) for number in numbers]
