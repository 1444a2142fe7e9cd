"""The only subprocess code of the service.

A ChildProcess has its own session and process group and dies with the service, even when that is killed with -9.
Its output is read as bytes until it ends: passed to `on_output`, kept as a bounded `tail`, written to a bounded log.
It is stopped politely, then by SIGTERM, then by SIGKILL to the whole group. It is reaped in one place, on the loop's
own thread and after its group has been killed, so no signal can ever reach a process that merely got the same pid.
"""

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from qwen_service.process import launch
from qwen_service.process.log_file import LogFile
from qwen_service.process.uninterrupted import finish_even_if_cancelled

logger = logging.getLogger(__name__)

TAIL_BYTES = 64 * 1024
# Seconds to wait for the output of a dead process to end: a process that left its group may keep it open.
LAST_WORDS = 1.0
KILL_PATIENCE = 2.0  # seconds after SIGKILL before a process counts as stuck in the kernel


class ChildProcess(asyncio.Protocol):
    """A running program. `start` makes it; the code that started it must stop it."""

    def __init__(self, name: str, log: LogFile | None, on_output: Callable[[bytes], None] | None) -> None:
        self.name = name
        self._log = log
        self._on_output = on_output
        self._tail = b""
        self._output_ended = False
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = self._loop.create_future()
        self._stopping: asyncio.Task[None] | None = None
        self._pid_file: Path | None = None
        self._input: asyncio.WriteTransport | None = None
        self._output: asyncio.ReadTransport | None = None
        self._popen: subprocess.Popen[bytes] | None = None  # None: not started

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        name: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        pid_file: Path | None = None,
        on_output: Callable[[bytes], None] | None = None,
        stdin: bool = False,
    ) -> "ChildProcess":
        """`env` replaces the whole environment. Raises OSError when there is no such program.

        Call it on a thread that outlives the child: the kernel kills the child when that thread ends.
        """
        program = find_program(argv[0], cwd, env)
        child = cls(name, LogFile(log_path) if log_path else None, on_output)
        with ExitStack() as its_ends:
            try:
                output, input_ = await finish_even_if_cancelled(child._connect(its_ends, stdin=stdin))
                child._spawn([program, *argv[1:]], cwd, env, output, input_)  # nothing is awaited from here on
            except BaseException:
                child._close_pipes()
                raise
        try:
            child._write_pid_file(pid_file)
        except OSError as error:  # a full disk, say; nothing of ours reads the file
            logger.warning("%s cannot be written: %s. %s runs without it", pid_file, error.strerror, name)
        return child

    @property
    def pid(self) -> int:
        return self._started.pid

    @property
    def _started(self) -> "subprocess.Popen[bytes]":
        assert self._popen is not None
        return self._popen

    @property
    def returncode(self) -> int | None:
        """Exit code; negative: the number of the signal that ended the process; None: it still runs."""
        return self._popen.returncode if self._popen is not None else None

    @property
    def tail(self) -> str:
        """The last 64 KiB of its output."""
        return self._tail.decode(errors="replace")

    async def wait(self) -> int:
        """Wait until the process has ended and all its output has been read. Returns the exit code."""
        return await asyncio.shield(self._exit)

    async def ends_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait()
        return self._exit.done()

    def write(self, data: bytes) -> None:
        """Write to the child's stdin. Bytes that it has not read when it exits are lost."""
        if self._input is None:
            raise ValueError(f"{self.name} was started without stdin: pass stdin=True to start()")
        if not self._input.is_closing():
            self._input.write(data)

    def close_stdin(self) -> None:
        if self._input is not None:
            self._input.close()

    def close_output(self) -> None:
        """Read no more of its output. Closes the pipe of a child that may never end, before the event loop is closed."""
        assert self._output is not None
        self._output.close()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group. Does nothing when the process has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def stop(self, polite: Callable[[], Awaitable[object]] | None = None, grace: float = 5.0) -> None:
        """Ask `polite`ly, then by SIGTERM, each with `grace` seconds, then SIGKILL the group. Idempotent.

        Cancelling the caller does not interrupt the stopping. When `polite` raises OSError, SIGTERM follows at once.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(polite, grace))
        await asyncio.shield(self._stopping)

    async def _stop(self, polite: Callable[[], Awaitable[object]] | None, grace: float) -> None:
        try:
            if polite is not None and self.returncode is None:
                with suppress(OSError):  # the program does not listen any more, or did not answer in time
                    async with asyncio.timeout(grace):
                        await polite()
                        await self.wait()
            self.send_signal(signal.SIGTERM)
            await self.ends_within(grace)
        finally:
            self.send_signal(signal.SIGKILL)
        if not await self.ends_within(KILL_PATIENCE):  # it is reaped later, when the kernel releases it
            logger.error("%s (process %d) still runs after SIGKILL: a driver may hold it", self.name, self.pid)

    async def _connect(self, its_ends: ExitStack, *, stdin: bool) -> tuple[int, int]:
        """Make the pipes. Returns the child's ends of its output and its stdin."""
        ours, output = os.pipe()
        its_ends.callback(os.close, output)
        self._output, _ = await self._loop.connect_read_pipe(lambda: self, FileIO(ours))
        if not stdin:
            return output, subprocess.DEVNULL
        input_, ours = os.pipe()
        its_ends.callback(os.close, input_)
        self._input, _ = await self._loop.connect_write_pipe(asyncio.BaseProtocol, FileIO(ours, "w"))
        return output, input_

    def _close_pipes(self) -> None:
        """Close our ends of a child that was not started."""
        if self._output is not None:
            self._output.close()
        self.close_stdin()
        if self._log is not None:
            self._log.close()

    def _spawn(
        self, argv: list[str], cwd: Path | None, env: Mapping[str, str] | None, output: int, input_: int
    ) -> None:
        launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid())]
        self._popen = subprocess.Popen(
            [*launcher, *argv],
            cwd=cwd,
            env=env,
            stdin=input_,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._watch()

    def _write_pid_file(self, path: Path | None) -> None:
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{self.pid}")
        draft.write_text(f"{self.pid}\n")
        draft.replace(path)
        self._pid_file = path

    def _watch(self) -> None:
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # macOS; a container whose seccomp profile forbids it
            threading.Thread(target=self._wait_in_thread, daemon=True).start()
        else:
            self._loop.add_reader(descriptor, self._on_exit, descriptor)

    def _wait_in_thread(self) -> None:
        self._started.wait()
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._reap)

    def _on_exit(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        self._reap()

    def _reap(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS: "not permitted" for a group of zombies
            # Kills its children. The unreaped zombie keeps the group's number from being reused.
            os.killpg(self.pid, signal.SIGKILL)
        self._started.wait()
        self.close_stdin()
        assert self._output is not None
        self._last_words = self._loop.call_later(LAST_WORDS, self._output.close)
        self._end_if_over()

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        if self._log is not None:
            self._log.write(data)
        if self._on_output is not None:
            self._on_output(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._output_ended = True
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self.returncode is None or not self._output_ended:
            return
        self._last_words.cancel()
        if self._log is not None:
            self._log.close()
        if self._pid_file is not None:
            self._pid_file.unlink(missing_ok=True)
        self._exit.set_result(self.returncode)


def find_program(program: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Find the path of a program as the child would: by PATH, or relative to `cwd` when the name has a slash."""
    path = str((cwd or Path()) / program) if os.sep in program else program
    found = shutil.which(path, path=(os.environ if env is None else env).get("PATH"))
    if found is None and os.path.isfile(path):
        raise PermissionError(f"{path} is not executable: run `chmod +x {path}`")
    if found is None:
        raise FileNotFoundError(f"there is no program {program}")
    return os.path.abspath(found)


def explain_exit(returncode: int) -> str:
    """Say in words how a process ended."""
    if returncode == 0:
        return "it ended by itself, without an error"
    if returncode > 0:
        return f"it ended with exit code {returncode}"
    name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else f"signal {-returncode}"
    if -returncode == signal.SIGKILL:
        return "it was killed (SIGKILL); if nobody did, the kernel did because memory ran out"
    if -returncode in {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}:
        return f"it crashed ({name})"
    return f"it was ended by {name}"


@dataclass(frozen=True, slots=True)
class ToolResult:
    returncode: int
    output: str  # stdout and stderr, the last 64 KiB


async def run_tool(argv: Sequence[str], timeout: float, input: bytes = b"") -> ToolResult:
    """Run a short program to its end. Raises OSError (no such program), or TimeoutError after killing it.

    Returns after `timeout` and half a second at most, even for a program stuck in a driver: that is reaped later.
    """
    tool = await ChildProcess.start(argv, name=argv[0], stdin=bool(input))
    try:
        if input:
            tool.write(input)
            tool.close_stdin()
        async with asyncio.timeout(timeout):
            return ToolResult(await tool.wait(), tool.tail)
    finally:
        tool.send_signal(signal.SIGKILL)
        try:
            await tool.ends_within(0.5)
        finally:
            tool.close_output()
