"""The process of main_api_*: from its command line to being ready, and to its end."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qwen_service.errors import Died, RuntimeFailure, StartFailed
from qwen_service.process import ChildProcess, explain_exit
from qwen_service.runtimes.axera_log import AxeraLog
from qwen_service.runtimes.base import LoadProgress
from qwen_service.runtimes.kv_cache import Ids
from qwen_service.runtimes.tokenizer_server import TokenizerServer

PORT = 8000  # compiled into the vendor's builds
READY = "Server running on port"
FIRST_CALLS = 2.0  # seconds for the calls to our tokenizer, which precede the ready line, to be seen

MakeCommand = Callable[[Mapping[str, str]], Sequence[str]]  # values of placeholders -> argv


@dataclass(frozen=True, slots=True)
class AxApiProgram:
    """How to run it."""

    command: MakeCommand  # is given tokenizer_url, system_prompt and port
    folder: Path  # of the model: its working directory
    env: Mapping[str, str] | None = None
    port: int = PORT
    log_path: Path | None = None
    pid_file: Path | None = None
    start_timeout: float = 300.0  # seconds without a sign of life while it loads
    stall_timeout: float = 60.0  # the same while it works


class AxApiProcess:
    """`failure` is set once, with the first reason for which it can no longer be used."""

    def __init__(self, program: AxApiProgram, server: TokenizerServer) -> None:
        self._program = program
        self._server = server
        self._child: ChildProcess | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._log = AxeraLog(lambda _: None)
        self._output = asyncio.Event()
        self.failure: asyncio.Future[RuntimeFailure] = asyncio.get_running_loop().create_future()

    async def start(self, progress: LoadProgress, system_prompt: Ids) -> Mapping[str, int]:
        """Return the numbers it reported when it is ready. StartFailed otherwise; stop() is due in either case."""
        await self._refuse_taken_port()
        self._log = AxeraLog(progress, ready_text=READY)
        with self._server.reset(system_prompt) as channel:
            await self._launch(channel.key)
            await self._until_ready()
            try:
                async with asyncio.timeout(FIRST_CALLS):
                    await channel.next()
            except TimeoutError:
                raise StartFailed(
                    f"It is up, but has not asked the tokenizer at {self._server.url} for its system prompt. Is"
                    " --url_tokenizer_model in its arguments?",
                    permanent=True,
                ) from None
        return self._log.numbers

    async def stop(self, leave_work: Callable[[], Awaitable[object]]) -> None:
        """SIGINT ends it once it is idle; `leave_work` is to make it so. By force where that fails or cannot help."""

        if (child := self._child) is not None:

            async def ask() -> None:
                await leave_work()
                child.send_signal(signal.SIGINT)

            await child.stop(None if self.failure.done() else ask)
        if self._watcher is not None:
            await self._watcher

    async def ends_within(self, seconds: float) -> bool:
        return self._child is None or await self._child.ends_within(seconds)

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
                f"Port {port} is taken, and the vendor's program knows no other. Stop what listens there"
                f" (`ss -ltnp sport = :{port}` names it; perhaps a runtime that was left over).",
                permanent=True,
            )

    async def _launch(self, key: str) -> None:
        program = self._program
        values = {"tokenizer_url": self._server.url, "system_prompt": key, "port": str(program.port)}
        try:
            self._child = await ChildProcess.start(
                program.command(values),
                name="main_api",
                cwd=program.folder,
                env=program.env,
                log_path=program.log_path,
                pid_file=program.pid_file,
                on_output=self._on_output,
            )
        except OSError as error:
            raise StartFailed(f"The vendor's program cannot be started: {error}.", permanent=True) from error
        self._watcher = asyncio.create_task(self._watch(self._child))

    def _on_output(self, data: bytes) -> None:
        self._log.feed(data)
        self._output.set()
        if (fault := self._log.running_fault()) is not None:
            self.fail(RuntimeFailure(fault))

    async def _watch(self, child: ChildProcess) -> None:
        code = await child.wait()
        message, _ = self._log.fault() or ("", False)
        self.fail(Died(f"The runtime has died: {explain_exit(code)}. {message}".rstrip()))
        self._output.set()

    async def _until_ready(self) -> None:
        assert self._child is not None
        while not self._log.ready:
            self._output.clear()
            try:
                await asyncio.wait_for(self._output.wait(), self._program.start_timeout)
            except TimeoutError:
                silence = f"It has said nothing for {self._program.start_timeout:g} s while loading."
                raise StartFailed(silence) from None
            if self.failure.done():
                raise self._log.start_failure(self._child.returncode)
