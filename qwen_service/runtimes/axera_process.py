"""A vendor's program as a process: launched, listened to while it loads, and failed once, with the first reason."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qwen_service.errors import Died, RuntimeFailure, StartFailed
from qwen_service.process import ChildProcess, explain_exit
from qwen_service.runtimes.axera_log import AxeraLog
from qwen_service.runtimes.base import LoadProgress

MakeCommand = Callable[[Mapping[str, str]], Sequence[str]]  # values of placeholders -> argv
IsReady = Callable[[], Awaitable[bool]]

PROBE = 0.5  # seconds between looks at a program that loads and says nothing


@dataclass(frozen=True, slots=True)
class AxeraProgram:
    """How to run one that listens on a port."""

    command: MakeCommand  # is given port, tokenizer_url and system_prompt, as far as there are such things
    folder: Path  # of the model: its working directory
    env: Mapping[str, str] | None = None
    port: int = 8000  # compiled into most builds
    log_path: Path | None = None
    pid_file: Path | None = None
    start_timeout: float = 300.0  # seconds without a sign of life while it loads
    stall_timeout: float = 60.0  # the same while it works


class AxeraProcess:
    """`failure` is set once, with the first reason for which it can no longer be used."""

    def __init__(self, program: AxeraProgram) -> None:
        self._program = program
        self._child: ChildProcess | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._output = asyncio.Event()
        self.log = AxeraLog(lambda _: None)
        self.failure: asyncio.Future[RuntimeFailure] = asyncio.get_running_loop().create_future()

    async def launch(self, values: Mapping[str, str], progress: LoadProgress, *, ready_text: str = "") -> None:
        """StartFailed when it cannot be; stop() is due in either case."""
        await self._refuse_taken_port()
        self.log = AxeraLog(progress, ready_text=ready_text)
        program = self._program
        argv = program.command({"port": str(program.port), **values})
        try:
            self._child = await ChildProcess.start(
                argv,
                name=Path(argv[0]).name,
                cwd=program.folder,
                env=program.env,
                log_path=program.log_path,
                pid_file=program.pid_file,
                on_output=self._on_output,
            )
        except OSError as error:
            raise StartFailed(f"The vendor's program cannot be started: {error}.", permanent=True) from error
        self._watcher = asyncio.create_task(self._watch(self._child))

    async def until(self, is_ready: IsReady) -> None:
        """StartFailed when it ends before, or says nothing for too long."""
        assert self._child is not None
        heard = asyncio.get_running_loop().time()
        while not await is_ready():
            self._output.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._output.wait(), PROBE)
                heard = asyncio.get_running_loop().time()
            if self.failure.done():
                raise self.log.start_failure(self._child.returncode)
            if asyncio.get_running_loop().time() - heard > self._program.start_timeout:
                raise StartFailed(f"It has said nothing for {self._program.start_timeout:g} s while loading.")

    async def stop(self, ask: Callable[[ChildProcess], Awaitable[object]] | None = None) -> None:
        """Politely by `ask`, where it has not failed; then by force. Idempotent."""
        if (child := self._child) is not None:
            await child.stop((lambda: ask(child)) if ask is not None and not self.failure.done() else None)
        if self._watcher is not None:
            await self._watcher

    async def ends_within(self, seconds: float) -> bool:
        """If so, `failure` says why."""
        if self._watcher is not None:
            await asyncio.wait({self._watcher}, timeout=seconds)
        return self._watcher is not None and self._watcher.done()

    def fail(self, failure: RuntimeFailure) -> RuntimeFailure:
        """The first reason counts, and is returned."""
        if not self.failure.done():
            self.failure.set_result(failure)
        return self.failure.result()

    async def _refuse_taken_port(self) -> None:
        # A second instance would start without an error and share the port: the kernel splits the requests.
        port = self._program.port
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            raise StartFailed(
                f"Port {port} is taken, and the vendor's program needs it. Stop what listens there"
                f" (`ss -ltnp sport = :{port}` names it; perhaps a runtime that was left over).",
                permanent=True,
            )

    def _on_output(self, data: bytes) -> None:
        self.log.feed(data)
        self._output.set()
        if (fault := self.log.running_fault()) is not None:
            self.fail(RuntimeFailure(fault))

    async def _watch(self, child: ChildProcess) -> None:
        code = await child.wait()
        message, _ = self.log.fault() or ("", False)
        self.fail(Died(f"The runtime has died: {explain_exit(code)}. {message}".rstrip()))
        self._output.set()
