"""The machine that the doctor examines: files under a root, the search path, the time, the account.

With another root than / a recorded machine can be examined. Nothing here changes the machine.
"""

import itertools
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwen_service.models.machine import Machine

AXCL_TOOLS = "usr/bin/axcl"  # where the vendor's package puts axcl-smi; its /etc/profile.d adds it to PATH
LISTENING = "0A"  # TCP state in /proc/net/tcp, include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    uid: int
    groups: frozenset[int]

    def may(self, path: Path, mode: int) -> bool:
        """Whether the account may read (4), write (2) or run (1) the file, as the kernel decides; root may do everything."""
        info = path.stat()
        if self.uid == 0:
            return mode != os.X_OK or bool(info.st_mode & 0o111)
        shift = 6 if info.st_uid == self.uid else 3 if info.st_gid in self.groups else 0
        return (stat.S_IMODE(info.st_mode) >> shift) & mode == mode


@dataclass(frozen=True, slots=True)
class Listener:
    address: str  # "0.0.0.0:8000", "[::]:8000"
    port: int
    holder: str  # "ollama (pid 812)"; empty when only root can see it


@dataclass(frozen=True)
class Host:
    root: Path = Path("/")
    machine: Machine = field(default_factory=Machine)
    path: str = field(default_factory=lambda: os.environ.get("PATH", ""))
    python: tuple[int, int] = sys.version_info[:2]
    now: float = field(default_factory=time.time)

    @classmethod
    def at(cls, root: Path, *, machine: str, path: str = "", now: float = 2e9) -> "Host":
        return cls(root, Machine(root, machine), path, now=now)

    def text(self, name: str) -> str:
        """The content of a file; empty when it does not exist or may not be read."""
        try:
            return (self.root / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def tail(self, name: str, size: int = 262_144) -> str:
        try:
            with (self.root / name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def which(self, program: str) -> str | None:
        return shutil.which(program, path=os.pathsep.join([self.path, str(self.root / AXCL_TOOLS)]))

    @property
    def model(self) -> str:
        """ "Raspberry Pi 5 Model B Rev 1.0"; empty on a PC."""
        return self.text("proc/device-tree/model").strip("\0\n ")

    def pci_folders(self, identity: tuple[str, str]) -> list[Path]:
        """Folders of the PCI functions with this vendor and device (four hexadecimal digits each), by bus address."""
        folders = sorted((self.root / "sys/bus/pci/devices").glob("*"))
        return [f for f in folders if (_hex(self.text(f"{f}/vendor")), _hex(self.text(f"{f}/device"))) == identity]

    def interrupts(self) -> dict[str, list[int]]:
        """Interrupt number -> how often each core has served it."""
        rows = (line.split() for line in self.text("proc/interrupts").splitlines()[1:])
        found: dict[str, list[int]] = {}
        for row in rows:
            if row and row[0].removesuffix(":").isdecimal():
                counts = list(itertools.takewhile(str.isdecimal, row[1:]))
                found[row[0].removesuffix(":")] = [int(count) for count in counts]
        return found

    def device_of(self, folder: Path) -> str:
        """The block device under the folder, or under its nearest parent that exists; empty when there is none."""
        place = folder.absolute()
        mounts = [line.split() for line in self.text("proc/mounts").splitlines()]
        above = [row for row in mounts if len(row) > 2 and (place == Path(row[1]) or Path(row[1]) in place.parents)]
        return max(above, key=lambda row: len(row[1]))[0] if above else ""

    def command_line(self, pid: int) -> str:
        """The command lines of the process and of its ancestors, nearest first, one per line."""
        lines: list[str] = []
        while pid > 1 and len(lines) < 8:
            lines.append(self.text(f"proc/{pid}/cmdline").replace("\0", " ").strip())
            parent = re.search(r"^PPid:\s+(\d+)", self.text(f"proc/{pid}/status"), re.MULTILINE)
            pid = int(parent[1]) if parent else 0
        return "\n".join(lines)

    def account(self, name: str) -> Account | None:
        for line in self.text("etc/passwd").splitlines():
            fields = line.split(":")
            if len(fields) >= 4 and fields[0] == name:
                return Account(name, int(fields[2]), frozenset({int(fields[3]), *self._groups_of(name)}))
        return None

    def group_name(self, gid: int) -> str:
        groups = (line.split(":") for line in self.text("etc/group").splitlines())
        return next((fields[0] for fields in groups if len(fields) >= 3 and fields[2] == str(gid)), str(gid))

    def listeners(self, ports: Sequence[int]) -> list[Listener]:
        """Who listens on these TCP ports, one line per address."""
        found = [entry for entry in self._sockets() if entry[1] in ports]
        holders = self._holders({inode for _, _, inode in found})
        return [Listener(address, port, holders.get(inode, "")) for address, port, inode in found]

    def _groups_of(self, name: str) -> Iterator[int]:
        for line in self.text("etc/group").splitlines():
            fields = line.split(":")
            if len(fields) >= 4 and name in fields[3].split(","):
                yield int(fields[2])

    def _sockets(self) -> Iterator[tuple[str, int, str]]:
        for table, any_address in (("proc/net/tcp", "0.0.0.0"), ("proc/net/tcp6", "[::]")):  # noqa: S104 - only read
            for line in self.text(table).splitlines()[1:]:
                fields = line.split()
                if len(fields) > 9 and fields[3] == LISTENING:
                    address, _, port = fields[1].partition(":")
                    where = any_address if not address.strip("0") else "this machine only"
                    yield f"{where}:{int(port, 16)}", int(port, 16), fields[9]

    def _holders(self, inodes: set[str]) -> dict[str, str]:
        """inode of a socket -> process. Only root sees other users' processes."""
        found: dict[str, str] = {}
        if not inodes:
            return found
        for link in (self.root / "proc").glob("[0-9]*/fd/*"):
            try:
                target = os.readlink(link)
            except OSError:
                continue  # it ended meanwhile, or we may not see its files
            inode = target.removeprefix("socket:[").removesuffix("]")
            if inode in inodes:
                pid = link.parts[-3]
                words = self.text(f"proc/{pid}/cmdline").replace("\0", " ").strip()
                found[inode] = f"{words[:80]} (pid {pid})"
        return found


def _hex(text: str) -> str:
    return text.strip().removeprefix("0x").lower()
