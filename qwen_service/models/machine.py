"""The kind of this machine, as far as the choice of a vendor's program depends on it.

/proc, /sys and /dev are read under `root`, so that a recorded machine can be examined like a live one.
"""

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# The board itself (main_ax650), or a host that drives a PCIe card (main_axcl_*).
MachineKind = Literal["ax650", "axcl_arm64", "axcl_x86_64"]

_ARCHITECTURES = {"aarch64": "arm64", "arm64": "arm64", "x86_64": "x86_64", "amd64": "x86_64"}


@dataclass(frozen=True, slots=True)
class Machine:
    root: Path = Path("/")
    machine: str = field(default_factory=platform.machine)  # as `uname -m` prints

    @property
    def arch(self) -> str:
        """arm64 or x86_64; for other processors the name that uname prints."""
        return _ARCHITECTURES.get(self.machine.lower(), self.machine)

    @property
    def kind(self) -> MachineKind | None:
        """None when the vendor has no program for this processor."""
        if self.is_board:
            return "ax650"
        kinds: dict[str, MachineKind] = {"arm64": "axcl_arm64", "x86_64": "axcl_x86_64"}
        return kinds.get(self.arch)

    def available_memory(self) -> int:
        """Bytes that a new process may have without swapping, within the bound of this service's own group; 0: not known."""
        free = self.memory_kib()[1] * 1024
        group = self._text("proc/self/cgroup").strip().rpartition("::")[2].strip("/")
        bound, used = (self._text(f"sys/fs/cgroup/{group}/memory.{name}").strip() for name in ("max", "current"))
        if bound.isdecimal() and used.isdecimal():
            return min(free, max(0, int(bound) - int(used)))
        return free

    def _text(self, name: str) -> str:
        try:
            return (self.root / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @property
    def is_board(self) -> bool:
        return (self.root / "proc/ax_proc").is_dir()

    def memory_kib(self) -> tuple[int, int]:
        """Total and available; zeros where /proc/meminfo does not say."""
        lines = (row.split() for row in self._text("proc/meminfo").splitlines())
        values = {line[0].rstrip(":"): int(line[1]) for line in lines if len(line) >= 2 and line[1].isdecimal()}
        return values.get("MemTotal", 0), values.get("MemAvailable", values.get("MemTotal", 0))

    @property
    def has_npu(self) -> bool:
        """Whether there is an NPU. On a host its device file appears once the driver is loaded and has found the card."""
        return self.is_board or (self.root / "dev/axcl_host").exists()
