"""The process of main_axcl_* and main_ax650: its command line, its prompts line by line, its end.

stdin takes keys, one per line; stdout shows when it waits for a prompt. Beside that only faults are read from stdout.
"""

import asyncio
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from qwen_service.errors import RuntimeFailure
from qwen_service.process.child import ChildProcess
from qwen_service.runtime import LoadProgress
from qwen_service.runtimes.axera.channel import Idle, Lost, TokenChannel
from qwen_service.runtimes.axera.program import AxeraProcess, VendorProgram
from qwen_service.runtimes.axera.program_files import write_post_config

MARKER = re.compile(rb"\n(?:prompt )?>> ")  # never followed by a newline
MARKER_SIZE = len("\nprompt >> ")
GRACE = 3.0  # seconds for `q`, then for SIGTERM


@dataclass(frozen=True, slots=True)
class ReplProgram(VendorProgram):
    post_config: Mapping[str, bool | int | float] = field(default_factory=dict)  # empty: the file in the folder is used
    start_timeout: float = 120.0  # seconds without a sign of life while it loads
    stop_timeout: float = 10.0  # seconds for a reply to stop; it takes one step of the NPU, 0.07 s


class ReplProcess(AxeraProcess):
    def __init__(self, program: ReplProgram) -> None:
        super().__init__(program)
        self._post_config = program.post_config
        self._last_bytes = b""
        self._channel: TokenChannel | None = None
        self.idle = False
        self.failure.add_done_callback(self._tell_channel)

    async def start(self, values: Mapping[str, str], progress: LoadProgress) -> Mapping[str, int]:
        """Start, and return the reported limits once it waits for a prompt. Raises StartFailed. Call stop() in either case."""
        write_post_config(self._program.folder, self._post_config)
        await self.launch(values, progress, stdin=True)
        await self.until(self._waits)
        return self.log.numbers

    def submit(self, channel: TokenChannel) -> None:
        """Run the channel's prompt. The channel gets Idle when the program waits again, or Lost."""
        assert self._child is not None
        assert self.idle, "one prompt at a time"
        self._channel = channel
        if self.failure.done():
            self._tell_channel(self.failure)
        else:
            self.idle, self._last_bytes = False, b""
            self._child.write(channel.key.encode() + b"\n")

    def interrupt(self) -> None:
        """Send one SIGINT: it ends a running reply; it is lost before a reply has begun, and has no effect without one."""
        assert self._child is not None
        self._child.send_signal(signal.SIGINT)

    async def stop(self) -> None:
        await self.end(self._quit if self.idle else None, GRACE)

    def heard(self, data: bytes) -> None:
        super().heard(data)
        recent = self._last_bytes + data
        self._last_bytes = recent[-MARKER_SIZE + 1 :]
        if not self.idle and MARKER.search(recent):
            self.idle = True
            if self._channel is not None:
                self._channel.post(Idle())

    async def _waits(self) -> bool:
        return self.idle

    async def _quit(self, child: ChildProcess) -> None:
        child.write(b"q\n")

    def _tell_channel(self, failure: asyncio.Future[RuntimeFailure]) -> None:
        if self._channel is not None:
            self._channel.post(Lost(failure.result()))
