"""The process of main_axcl_* and main_ax650: from its command line to its first prompt, line by line, and to its end.

stdin takes keys, one a line; stdout tells when it waits for a prompt. Nothing else is read from it but faults.
"""

import asyncio
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwen_service.errors import Died, RuntimeFailure, StartFailed
from qwen_service.process import ChildProcess, explain_exit
from qwen_service.runtimes.axera_log import AxeraLog
from qwen_service.runtimes.base import LoadProgress
from qwen_service.runtimes.program_files import mend_program, unusable_files, write_post_config
from qwen_service.runtimes.token_channel import Idle, Lost, TokenChannel

MARKER = re.compile(rb"\n(?:prompt )?>> ")  # never followed by a newline
MARKER_SIZE = len("\nprompt >> ")
GRACE = 3.0  # seconds for `q`, then for SIGTERM

MakeCommand = Callable[[Mapping[str, str]], Sequence[str]]  # values of placeholders -> argv


@dataclass(frozen=True, slots=True)
class ReplProgram:
    """How to run it."""

    command: MakeCommand  # is given tokenizer_url and system_prompt
    folder: Path  # of the model: its working directory
    post_config: Mapping[str, bool | int | float] = field(default_factory=dict)  # empty: what lies there is used
    env: Mapping[str, str] | None = None
    log_path: Path | None = None
    pid_file: Path | None = None
    start_timeout: float = 120.0  # seconds without a sign of life while it loads
    stall_timeout: float = 60.0  # the same while it works
    stop_timeout: float = 10.0  # seconds for a reply to stop; it takes one step of the NPU, 0.07 s


class ReplProcess:
    """`failure` is set once, with the first reason for which it can no longer be used."""

    def __init__(self, program: ReplProgram) -> None:
        self._program = program
        self._argv: Sequence[str] = ()
        self._child: ChildProcess | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._log = AxeraLog(lambda _: None)
        self._last_bytes = b""
        self._output = asyncio.Event()
        self._channel: TokenChannel | None = None
        self.idle = False
        self.failure: asyncio.Future[RuntimeFailure] = asyncio.get_running_loop().create_future()

    async def start(self, values: Mapping[str, str], progress: LoadProgress) -> Mapping[str, int]:
        """Return the numbers it reported when it waits for a prompt. StartFailed otherwise; stop() is due either way."""
        self._log = AxeraLog(progress)
        self._argv = self._program.command(values)
        mend_program(self._program.folder / self._argv[0])
        write_post_config(self._program.folder, self._program.post_config)
        await self._launch()
        while not self.idle:
            await self._a_sign_of_life()
        return self._log.numbers

    def submit(self, channel: TokenChannel) -> None:
        """Have it run the channel's prompt, and tell the channel when it waits again, or is lost."""
        assert self._child is not None
        assert self.idle, "one prompt at a time"
        self._channel = channel
        if self.failure.done():
            channel.post(Lost(self.failure.result()))
        else:
            self.idle, self._last_bytes = False, b""
            self._child.write(channel.key.encode() + b"\n")

    def interrupt(self) -> None:
        """One SIGINT: ends a reply; lost when the reply has not begun, without effect when there is none."""
        assert self._child is not None
        self._child.send_signal(signal.SIGINT)

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop(self._quit if self.idle and not self.failure.done() else None, GRACE)
        if self._watcher is not None:
            await self._watcher

    def fail(self, failure: RuntimeFailure) -> RuntimeFailure:
        """The first reason counts, and is returned."""
        if not self.failure.done():
            self.failure.set_result(failure)
            if self._channel is not None:
                self._channel.post(Lost(failure))
        return self.failure.result()

    async def _quit(self) -> None:
        assert self._child is not None
        self._child.write(b"q\n")

    async def _launch(self) -> None:
        program = self._program
        try:
            self._child = await ChildProcess.start(
                self._argv,
                name=Path(self._argv[0]).name,
                cwd=program.folder,
                env=program.env,
                log_path=program.log_path,
                pid_file=program.pid_file,
                on_output=self._on_output,
                stdin=True,
            )
        except OSError as error:
            raise StartFailed(f"The vendor's program cannot be started: {error}.", permanent=True) from error
        self._watcher = asyncio.create_task(self._watch(self._child))

    async def _a_sign_of_life(self) -> None:
        self._output.clear()
        try:
            await asyncio.wait_for(self._output.wait(), self._program.start_timeout)
        except TimeoutError:
            raise StartFailed(f"It has said nothing for {self._program.start_timeout:g} s while loading.") from None
        if self.failure.done():
            raise self._why_it_did_not_start()

    def _why_it_did_not_start(self) -> StartFailed:
        assert self._child is not None
        if "error while loading shared libraries" in self._child.tail:
            library = self._child.tail.strip().splitlines()[-1]
            cure = "Install the vendor's driver package (axclhost), and start the service with /etc/profile sourced."
            return StartFailed(f"The vendor's program lacks a library: {library}. {cure}", permanent=True)
        if (reason := unusable_files(self._argv, self._program.folder)) is not None:
            return StartFailed(reason, permanent=True)
        return self._log.start_failure(self._child.returncode)

    async def _watch(self, child: ChildProcess) -> None:
        code = await child.wait()
        message, _ = self._log.fault() or ("", False)
        self.fail(Died(f"The runtime has died: {explain_exit(code)}. {message}".rstrip()))
        self._output.set()

    def _on_output(self, data: bytes) -> None:
        self._log.feed(data)
        self._output.set()
        if (fault := self._log.running_fault()) is not None:
            self.fail(RuntimeFailure(fault))
        recent = self._last_bytes + data
        self._last_bytes = recent[-MARKER_SIZE + 1 :]
        if not self.idle and MARKER.search(recent):
            self.idle = True
            if self._channel is not None:
                self._channel.post(Idle())
