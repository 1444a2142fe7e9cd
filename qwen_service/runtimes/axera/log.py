"""Reads the output of the vendor's programs: progress, limits, and faults in plain words. IO-free: feed() the bytes.

They print log lines with ANSI colours to stdout and, while loading, progress frames that begin with a carriage return.
stdout is block-buffered, so a line can come late; a death in early initialization can leave nothing at all.
"""

import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qwen_service.card import faults as card_faults
from qwen_service.card.faults import CardFault
from qwen_service.errors import StartFailed
from qwen_service.process.child import explain_exit
from qwen_service.runtime import Limits, LoadProgress

_ANSI = re.compile(rb"\x1b\[[0-9;]*m")
_LINE_END = re.compile(rb"[\r\n]")
_FRAME = re.compile(r"\d+% \|.*\|\s*(\d+) /\s*(\d+)")
_NUMBER = re.compile(r"(?<!, )\b(max_token_len|prefill_max_token_num) : (\d+)")  # ", " precedes a single group's
_ERROR = re.compile(r"\[E\]|^\d\d:\d\d:\d\d\.\d+ (?:ERR|CRT|ALT|EMG) ")  # of the builds of 2025, and of those of 2026
_MAX_LINE = 64 * 1024
_ERRORS_KEPT = 20


@dataclass(frozen=True, slots=True)
class _ProgramFault:
    """A fault that no restart cures. Faults of the card and its driver are in card/faults.py."""

    pattern: str
    message: str


_PROGRAM_FAULTS = (
    _ProgramFault(
        r"init axmodel\((?P<file>[^)]*)\) failed",
        "The model file {file} cannot be loaded: it is damaged, incomplete or for another chip. `qwen-service verify`"
        " finds out; fetch the model again.",
    ),
    _ProgramFault(
        r"embed",
        "The model's embedding file cannot be opened. It must exist, and with --use_mmap_load_embed 1 be writable"
        " by the user the service runs as.",
    ),
    _ProgramFault(
        r"undefined option|need option",
        "This build of the vendor's program does not take these arguments; the model's manifest and the program do not"
        " belong together.",
    ),
)


def reported_limits(numbers: Mapping[str, int], expected: Limits) -> Limits:
    """Return the limits that a program printed (AxeraLog.numbers); those `expected` where it printed none."""
    return Limits(
        context=numbers.get("max_token_len", expected.context),
        prompt=numbers.get("prefill_max_token_num", expected.prompt),
    )


class AxeraLog:
    """The output of one program: its `numbers` and `errors`. `ready` becomes true at the line with `ready_text`."""

    def __init__(
        self, progress: LoadProgress, *, ready_text: str = "", on_line: Callable[[str], None] = lambda _: None
    ) -> None:
        self._progress = progress
        self._on_line = on_line
        self._ready_text = ready_text
        self._rest = b""
        self.ready = False
        self.numbers: dict[str, int] = {}
        self.errors: deque[str] = deque(maxlen=_ERRORS_KEPT)  # lines marked as errors, and about the command line

    def feed(self, data: bytes) -> None:
        *lines, self._rest = _LINE_END.split(self._rest + data)
        self._rest = self._rest[-_MAX_LINE:]
        for line in lines:
            self._read(_ANSI.sub(b"", line).decode(errors="replace").strip())

    def _read(self, line: str) -> None:
        self._on_line(line)
        if frame := _FRAME.search(line):
            self._progress(f"loading {frame[1]}/{frame[2]}")
        if number := _NUMBER.search(line):
            self.numbers[number[1]] = int(number[2])
        if _ERROR.search(line) or line.startswith(("undefined option", "need option")):
            self.errors.append(line)
        if self._ready_text and self._ready_text in line:
            self.ready = True

    def fault(self) -> tuple[str, bool] | None:
        """The first known fault as (explanation with the program's own words, permanent); None when there was none."""
        for line in self.errors:
            if (of_card := card_faults.explain(line)) is not None:
                return f"{of_card} ({line})", of_card.permanent
            for fault in _PROGRAM_FAULTS:
                if found := re.search(fault.pattern, line):
                    return f"{fault.message.format(**found.groupdict())} ({line})", True
        return (f"The vendor's program reports: {self.errors[0]}", False) if self.errors else None

    def card_fault(self) -> tuple[CardFault, str] | None:
        """A fault of the card, with its line. The program only prints such a line and goes on with stale data."""
        return next(((fault, line) for line in self.errors if (fault := card_faults.explain(line))), None)

    def start_failure(self, returncode: int | None) -> StartFailed:
        """Explain why a program did not come up. `returncode` is None while it still runs."""
        message, permanent = self.fault() or ("The vendor's program did not come up.", False)
        end = f" ({explain_exit(returncode)})" if returncode is not None else ""
        return StartFailed(message + end, permanent=permanent)
