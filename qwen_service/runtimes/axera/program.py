"""Runs a vendor's program: launches it, watches it while it loads, and keeps the first reason of its failure."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qwen_service.card.faults import CardFault
from qwen_service.errors import Died, ProtocolError, RuntimeFailure, StartFailed
from qwen_service.process.child import ChildProcess, explain_exit
from qwen_service.runtime import LoadProgress
from qwen_service.runtimes.axera.channel import TokenChannel
from qwen_service.runtimes.axera.log import AxeraLog
from qwen_service.runtimes.axera.program_files import mend_program, unusable_files, unusable_sampling

MakeCommand = Callable[[Mapping[str, str]], Sequence[str]]  # values of the placeholders -> argv
IsReady = Callable[[], Awaitable[bool]]

GRACE = 5.0  # seconds for each way to stop it
PROBE = 0.5  # seconds between checks of a silent program that loads
FIRST_CALL = 2.0  # seconds to wait for the program's call of our /reset, which it makes before it is ready


@dataclass(frozen=True, slots=True)
class VendorProgram:
    """How to run a vendor's program."""

    command: MakeCommand  # gets tokenizer_url, system_prompt and port, when they exist
    folder: Path  # the model's folder: the working directory
    env: Mapping[str, str] | None = None
    log_path: Path | None = None
    pid_file: Path | None = None
    start_timeout: float = 300.0  # seconds without a sign of life while it loads
    stall_timeout: float = 60.0  # seconds without a sign of life while it works
    on_card_fault: Callable[[CardFault], None] = lambda _: None
    on_line: Callable[[str], None] = lambda _: None  # of its log


@dataclass(frozen=True, slots=True)
class AxeraProgram(VendorProgram):
    """A program that listens on a port."""

    port: int = 8000  # compiled into most builds


class AxeraProcess:
    """The process. `failure` is set once, to the first reason why it cannot be used any more."""

    def __init__(self, program: VendorProgram) -> None:
        self._program = program
        self._argv: Sequence[str] = ()
        self._child: ChildProcess | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._output = asyncio.Event()
        self.log = AxeraLog(lambda _: None)
        self.failure: asyncio.Future[RuntimeFailure] = asyncio.get_running_loop().create_future()

    async def launch(
        self, values: Mapping[str, str], progress: LoadProgress, *, ready_text: str = "", stdin: bool = False
    ) -> None:
        """Launch it. Raises StartFailed. Call stop() afterwards, whether or not it started."""
        self.log = AxeraLog(progress, ready_text=ready_text, on_line=self._program.on_line)
        program = self._program
        self._argv = program.command(values)
        if os.sep in self._argv[0]:  # otherwise PATH finds it
            mend_program(program.folder / self._argv[0])
        try:
            self._child = await ChildProcess.start(
                self._argv,
                name=Path(self._argv[0]).name,
                cwd=program.folder,
                env=program.env,
                log_path=program.log_path,
                pid_file=program.pid_file,
                on_output=self.heard,
                stdin=stdin,
            )
        except OSError as error:
            raise StartFailed(f"The vendor's program cannot be started: {error}.", permanent=True) from error
        self._watcher = asyncio.create_task(self._watch(self._child))

    async def until(self, is_ready: IsReady) -> None:
        """Wait for `is_ready`. Raises StartFailed when the program ends first, or is silent for too long."""
        assert self._child is not None
        heard = asyncio.get_running_loop().time()
        while not await is_ready():
            self._output.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE):
                    await self._output.wait()
                heard = asyncio.get_running_loop().time()
            if self.failure.done():
                raise self._why_it_did_not_start(self._child)
            if asyncio.get_running_loop().time() - heard > self._program.start_timeout:
                raise StartFailed(
                    f"The vendor's program printed nothing for {self._program.start_timeout:g} s while loading."
                )

    async def expect_reset(self, channel: TokenChannel) -> None:
        """Wait for the reset call. Raises StartFailed when the ready program has not fetched the channel's ids: it would use others."""
        try:
            async with asyncio.timeout(FIRST_CALL):
                await channel.next()
        except TimeoutError:
            raise StartFailed(
                "The vendor's program is up, but has not asked our tokenizer for its system prompt. Do its arguments have --system_prompt"
                " and --url_tokenizer_model, as in the manifests that come with the service?",
                permanent=True,
            ) from None

    async def end(self, ask: Callable[[ChildProcess], Awaitable[object]] | None = None, grace: float = GRACE) -> None:
        """Stop it: politely by `ask`, unless it has failed, then by force. Idempotent."""
        if (child := self._child) is not None:
            await child.stop((lambda: ask(child)) if ask is not None and not self.failure.done() else None, grace)
        if self._watcher is not None:
            await self._watcher

    async def ends_within(self, seconds: float) -> bool:
        """Whether it ends within so many seconds; `failure` then says why."""
        if self._watcher is not None:
            await asyncio.wait({self._watcher}, timeout=seconds)
        return self._watcher is not None and self._watcher.done()

    def fail(self, failure: RuntimeFailure) -> RuntimeFailure:
        """Set `failure`, unless it is set already. Returns the first reason."""
        if not self.failure.done():
            self.failure.set_result(failure)
        return self.failure.result()

    def heard(self, data: bytes) -> None:
        """Called with the program's output as it comes."""
        self.log.feed(data)
        self._output.set()
        if not self.failure.done() and (complaint := self.log.card_fault()) is not None:
            fault, line = complaint
            self._program.on_card_fault(fault)
            self.fail(ProtocolError(f"{fault} ({line})"))

    def _why_it_did_not_start(self, child: ChildProcess) -> StartFailed:
        if "error while loading shared libraries" in child.tail:
            library = child.tail.strip().splitlines()[-1]
            cure = "Install the vendor's driver package (axclhost), and start the service with /etc/profile sourced."
            return StartFailed(f"The vendor's program lacks a library: {library}. {cure}", permanent=True)
        if (reason := unusable_files(self._argv, self._program.folder)) is not None:
            return StartFailed(reason, permanent=True)
        if child.returncode == -signal.SIGABRT and (reason := unusable_sampling(self._program.folder)) is not None:
            return StartFailed(reason, permanent=True)
        return self.log.start_failure(child.returncode)

    async def _watch(self, child: ChildProcess) -> None:
        code = await child.wait()
        message, _ = self.log.fault() or ("", False)
        self.fail(Died(f"The vendor's program has died: {explain_exit(code)}. {message}".rstrip()))
        self._output.set()


async def listens(port: int) -> bool:
    """Whether anybody on this machine listens on the port."""
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


async def refuse_taken_port(port: int) -> None:
    """Raise StartFailed when the port is taken: a second program would share it, and the kernel would split the requests."""
    if await listens(port):
        raise StartFailed(
            f"Port {port} is taken, and the vendor's program needs it. Stop what listens there"
            f" (`ss -ltnp sport = :{port}` names it; perhaps a runtime that was left over).",
            permanent=True,
        )
