"""What the vendor's programs print -> progress, numbers and faults in plain words. IO-free: feed() the bytes.

They print to stdout: log lines with ANSI colours, and while loading progress frames that begin with a carriage return.
stdout is block-buffered, so a line can come late; a death in early initialization can leave nothing at all.
"""

import re
from collections import deque
from dataclasses import dataclass

from qwen_service.errors import StartFailed
from qwen_service.process import explain_exit
from qwen_service.runtimes.base import LoadProgress

_ANSI = re.compile(rb"\x1b\[[0-9;]*m")
_LINE_END = re.compile(rb"[\r\n]")
_FRAME = re.compile(r"\d+% \|.*\|\s*(\d+) /\s*(\d+)")
_NUMBER = re.compile(r"(?<!, )\b(max_token_len|prefill_max_token_num) : (\d+)")  # ", " precedes a single group's
_MAX_LINE = 64 * 1024
_ERRORS_KEPT = 20


@dataclass(frozen=True, slots=True)
class Fault:
    pattern: str
    message: str
    permanent: bool = False  # no restart can cure it


# Only printed: the program goes on with stale data, an endless run of one token.
NPU_FAULT = Fault(
    r"AX_ENGINE_Execute|AXCL_ENGINE_Execute|axclrtEngineExecute",
    "The NPU reports execution errors: its answers cannot be trusted. If a restart does not help, reset the card"
    " (`axcl-smi reboot`) or the machine.",
)
FAULTS = (
    Fault(
        r"axcl init fail|open /dev/axcl_host fail",
        "The card's driver is not loaded. Install or reload the vendor's axcl driver package and look at"
        " `dmesg | grep -i axcl`; `qwen-service doctor` checks the rest.",
        permanent=True,
    ),
    Fault(
        r"no device connected",
        "No Axera card was found on PCIe. Check that it sits firmly and that `lspci` shows it; a Raspberry Pi 5 may need"
        " `dtoverlay=pciex1-compat-pi5,no-mip` in /boot/firmware/config.txt.",
        permanent=True,
    ),
    Fault(
        r"Set AXCL device failed|request ports from device",
        "The card cannot be opened: another process holds it (`axcl-smi` names it), or this user may not use"
        " /dev/axcl_host.",
    ),
    Fault(
        r"init axmodel\((?P<file>[^)]*)\) failed",
        "The model file {file} cannot be loaded: it is damaged, incomplete or of another chip. `qwen-service verify`"
        " finds out; fetch the model again.",
        permanent=True,
    ),
    Fault(
        r"embed",
        "The model's embedding file cannot be opened. It must exist, and with --use_mmap_load_embed 1 be writable"
        " by the user the service runs as.",
        permanent=True,
    ),
    Fault(
        r"undefined option|need option",
        "This build of the vendor's program does not take these arguments; the model's manifest and the program do not"
        " belong together.",
        permanent=True,
    ),
    NPU_FAULT,
)


class AxeraLog:
    """`numbers` and `errors` of one program; `ready` turns true with the line that `ready_text` stands in."""

    def __init__(self, progress: LoadProgress, *, ready_text: str = "") -> None:
        self._progress = progress
        self._ready_text = ready_text
        self._rest = b""
        self.ready = False
        self.numbers: dict[str, int] = {}
        self.errors: deque[str] = deque(maxlen=_ERRORS_KEPT)  # lines marked [E], and usage complaints

    def feed(self, data: bytes) -> None:
        *lines, self._rest = _LINE_END.split(self._rest + data)
        self._rest = self._rest[-_MAX_LINE:]
        for line in lines:
            self._read(_ANSI.sub(b"", line).decode(errors="replace").strip())

    def _read(self, line: str) -> None:
        if frame := _FRAME.search(line):
            self._progress(f"loading {frame[1]}/{frame[2]}")
        if number := _NUMBER.search(line):
            self.numbers[number[1]] = int(number[2])
        if "[E]" in line or line.startswith(("undefined option", "need option")):
            self.errors.append(line)
        if self._ready_text and self._ready_text in line:
            self.ready = True

    def fault(self) -> tuple[str, bool] | None:
        """The first error as (plain words with the program's own, permanent); None when nothing was complained of."""
        if not self.errors:
            return None
        for line in self.errors:
            for fault in FAULTS:
                if found := re.search(fault.pattern, line):
                    return f"{fault.message.format(**found.groupdict())} ({line})", fault.permanent
        return f"The vendor's program reports: {self.errors[0]}", False

    def running_fault(self) -> str | None:
        """Why what it generates from now on is worth nothing; None when it complains of no such thing."""
        line = next((line for line in self.errors if re.search(NPU_FAULT.pattern, line)), None)
        return f"{NPU_FAULT.message} ({line})" if line else None

    def start_failure(self, returncode: int | None) -> StartFailed:
        """Why a program did not come up. `returncode` is None while it still runs."""
        message, permanent = self.fault() or ("The vendor's program did not come up.", False)
        end = f" ({explain_exit(returncode)})" if returncode is not None else ""
        return StartFailed(message + end, permanent=permanent)
