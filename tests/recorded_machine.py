"""A Raspberry Pi 5 with a card, as files: what the doctor reads of /proc, /sys, /dev and /etc."""

import os
from pathlib import Path

from qwen_service.doctor.host import Host

SIMULATORS = Path(__file__).parent / "simulators"

HEALTHY = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/cpuinfo": "Features : fp asimd aes asimddp\n",
    "proc/meminfo": "MemTotal: 8255000 kB\nMemFree: 100 kB\nMemAvailable: 6000000 kB\n",
    "proc/modules": "axcl_host 400000 0 - Live 0x0\nnvme 1 0 - Live 0x0\n",
    "proc/net/tcp": "  sl  local_address rem_address   st\n",
    "sys/bus/pci/devices/0001:01:00.0/vendor": "0x1f4b\n",
    "sys/bus/pci/devices/0001:01:00.0/device": "0x0650\n",
    "dev/axcl_host": "",
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nqwen:x:990:990::/var/lib/qwen:/usr/sbin/nologin\n",
    "etc/group": f"axcl:x:{os.getgid()}:qwen\n",
    "etc/profile.d/axcl.sh": "export LD_LIBRARY_PATH=/usr/lib/axcl\n",
}


class RecordedMachine:
    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in HEALTHY.items():
            self.write(name, text)
        (root / "dev/axcl_host").chmod(0o660)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def process(self, pid: int, command: str, *, parent: int = 1) -> None:
        self.write(f"proc/{pid}/cmdline", command.replace(" ", "\0"))
        self.write(f"proc/{pid}/status", f"Name:\tx\nPPid:\t{parent}\n")

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    def listen(self, port: int, *, pid: int, command: str) -> None:
        """As a process that listens on every address would look."""
        line = f"   0: 00000000:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 {pid}77 1"
        self.write("proc/net/tcp", HEALTHY["proc/net/tcp"] + line + "\n")
        self.write(f"proc/{pid}/cmdline", command.replace(" ", "\0"))
        (self.root / f"proc/{pid}/fd").mkdir()
        (self.root / f"proc/{pid}/fd/3").symlink_to(f"socket:[{pid}77]")

    def host(self, *, machine: str = "aarch64", now: float = 2e9) -> Host:
        return Host.at(self.root, machine=machine, path=str(SIMULATORS), now=now)
