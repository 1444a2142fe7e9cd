"""ChildProcess with real child processes, on asyncio's loop and on uvloop."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qwen_service.process.child import ChildProcess, explain_exit, find_program, run_tool
from qwen_service.process.log_file import LogFile
from tests.waiting import until

pytestmark = pytest.mark.both_loops
DEADLINE = 20.0  # seconds


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-u", "-c", code]


class Heard:
    """What a process wrote, and a way to wait for it."""

    def __init__(self) -> None:
        self.data = b""
        self._news = asyncio.Event()

    def __call__(self, data: bytes) -> None:
        self.data += data
        self._news.set()

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(DEADLINE):
            while text not in self.data:
                self._news.clear()
                await self._news.wait()


async def gone(pid: int) -> None:
    """Return when this process, a child of ours or not, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(DEADLINE):
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


Start = Callable[..., Awaitable[tuple[ChildProcess, Heard]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started: list[ChildProcess] = []

    async def begin(code: str, **options: Any) -> tuple[ChildProcess, Heard]:
        heard = Heard()
        started.append(await ChildProcess.start(python(code), name="child", on_output=heard, **options))
        return started[-1], heard

    yield begin
    for child in started:
        await child.stop(grace=0.1)


SLEEP = "import time; print('up'); time.sleep(600)"
IGNORES_TERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(600)"
HOLDS_THE_OUTPUT = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
with open({note!r} + ".new", "w") as file:
    file.write(str(child.pid))
os.rename({note!r} + ".new", {note!r})
time.sleep(60)
"""
FORKS = "import os, time\npid = os.fork()\nif pid: print(pid)\ntime.sleep(600)"


async def test_stdout_and_stderr_are_merged_and_kept_and_handed_on(start: Start) -> None:
    child, heard = await start("import sys; print('out'); sys.stderr.write('err'); sys.exit(3)")
    assert await child.wait() == 3
    assert child.tail == "out\nerr"
    assert heard.data == b"out\nerr"


async def test_output_without_a_newline_arrives_at_once(start: Start) -> None:
    child, heard = await start("import sys, time; sys.stdout.write('>> '); time.sleep(600)")
    await heard.until(b">> ")
    assert child.returncode is None


async def test_output_that_is_not_utf8_is_bytes_for_the_reader_and_readable_in_the_tail(start: Start) -> None:
    child, heard = await start(r"import sys; sys.stdout.buffer.write(b'\xff\xfe ok')")
    await child.wait()
    assert heard.data == b"\xff\xfe ok"
    assert child.tail == "\ufffd\ufffd ok"


async def test_the_tail_is_bounded_and_complete_at_its_end(start: Start) -> None:
    child, _ = await start("import sys; sys.stdout.write('x' * 3_000_000 + 'END')")
    await child.wait()
    assert len(child.tail) == 64 * 1024
    assert child.tail.endswith("xEND")


async def test_what_is_written_reaches_its_stdin(start: Start) -> None:
    child, _ = await start("print(input()[::-1])", stdin=True)
    child.write(b"abc\n")
    await child.wait()
    assert child.tail == "cba\n"


async def test_writing_to_a_dead_process_is_harmless(start: Start) -> None:
    child, _ = await start("", stdin=True)
    await child.wait()
    child.write(b"anybody there?\n")
    child.send_signal(signal.SIGTERM)
    assert child.returncode == 0


async def test_it_leads_its_own_session_with_default_signals(start: Start) -> None:
    child, _ = await start(
        "import os, signal; print(os.getsid(0) == os.getpgid(0) == os.getpid());"
        "print(open('/proc/self/status').read().split('SigIgn:')[1].split()[0])"
    )
    await child.wait()
    leads, ignored = child.tail.split()
    assert leads == "True"
    python_itself = {signal.SIGPIPE, signal.SIGXFSZ}  # the child is an interpreter, which ignores these two
    assert int(ignored, 16) == sum(1 << (number - 1) for number in python_itself)


async def test_stop_ends_a_process_by_sigterm(start: Start) -> None:
    child, heard = await start(SLEEP)
    await heard.until(b"up")
    await child.stop(grace=DEADLINE)
    assert child.returncode == -signal.SIGTERM


async def test_stop_kills_a_process_that_ignores_sigterm(start: Start) -> None:
    child, heard = await start(IGNORES_TERM)
    await heard.until(b"up")
    await child.stop(grace=0.1)
    assert child.returncode == -signal.SIGKILL


async def test_stop_asks_politely_first(start: Start) -> None:
    child, _ = await start("input(); raise SystemExit(7)", stdin=True)

    async def polite() -> None:
        child.write(b"q\n")

    await child.stop(polite, grace=DEADLINE)
    assert child.returncode == 7


async def test_a_polite_way_that_fails_or_hangs_does_not_keep_the_process_alive(start: Start) -> None:
    async def fails() -> None:
        raise ConnectionRefusedError("nobody listens")

    for polite in (fails, lambda: asyncio.sleep(600)):
        child, heard = await start(SLEEP)
        await heard.until(b"up")
        await child.stop(polite, grace=1)
        assert child.returncode == -signal.SIGTERM


async def test_stop_can_be_called_again_and_by_several_at_once(start: Start) -> None:
    child, _ = await start(SLEEP)
    await asyncio.gather(child.stop(), child.stop())
    await child.stop()
    assert child.returncode == -signal.SIGTERM


async def test_a_cancelled_stop_still_ends_the_process(start: Start) -> None:
    child, heard = await start(IGNORES_TERM)
    await heard.until(b"up")
    stopping = asyncio.create_task(child.stop(grace=0.2))
    await asyncio.sleep(0.05)
    stopping.cancel()
    async with asyncio.timeout(DEADLINE):
        assert await child.wait() == -signal.SIGKILL


async def test_grandchildren_go_with_a_stopped_process(start: Start) -> None:
    child, heard = await start(FORKS)
    await heard.until(b"\n")
    grandchild = int(child.tail)
    os.kill(grandchild, 0)
    await child.stop(grace=DEADLINE)
    await gone(grandchild)


async def test_grandchildren_go_when_the_process_dies_by_itself(start: Start) -> None:
    child, _ = await start("import os, time\npid = os.fork()\nif pid: print(pid); os._exit(9)\ntime.sleep(600)")
    assert await child.wait() == 9
    grandchild = int(child.tail)
    await gone(grandchild)


async def test_a_stranger_that_holds_the_pipe_does_not_delay_the_end(start: Start) -> None:
    child, _ = await start(
        "import os, time\nready, tell = os.pipe()\nif os.fork(): os.read(ready, 1); os._exit(5)\n"
        "os.setsid(); print(os.getpid()); os.write(tell, b'.'); time.sleep(600)"
    )
    async with asyncio.timeout(DEADLINE):
        assert await child.wait() == 5
    os.kill(int(child.tail), signal.SIGKILL)


PARENT = """
import asyncio, sys
from qwen_service.process.child import ChildProcess

async def main():
    child = await ChildProcess.start([sys.executable, "-c", {code!r}], name="child")
    print(child.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has PR_SET_PDEATHSIG")
async def test_it_dies_with_a_parent_that_is_killed_with_minus_nine() -> None:
    program = [sys.executable, "-c", PARENT.format(code=IGNORES_TERM)]
    parent = await asyncio.create_subprocess_exec(*program, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    await parent.wait()
    await gone(child)


async def test_the_pid_file_names_the_process_while_it_lives(start: Start, tmp_path: Path) -> None:
    pid_file = tmp_path / "run" / "child.pid"
    child, _ = await start(SLEEP, pid_file=pid_file)
    assert pid_file.read_text() == f"{child.pid}\n"
    await child.stop()
    assert list(pid_file.parent.iterdir()) == []


async def test_a_pid_file_that_cannot_be_written_stops_nobody(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    child, _ = await start(SLEEP, pid_file=tmp_path / "run" / "child.pid")
    assert child.returncode is None
    assert "child.pid cannot be written: " in caplog.text
    await child.stop()


async def test_the_log_has_what_the_process_wrote(start: Start, tmp_path: Path) -> None:
    child, _ = await start(
        r"import sys; sys.stdout.buffer.write(b'\xff one\n')", log_path=tmp_path / "logs" / "child.log"
    )
    await child.wait()
    assert (tmp_path / "logs" / "child.log").read_bytes() == b"\xff one\n"


async def test_a_full_disk_stops_neither_the_process_nor_its_reader(start: Start, tmp_path: Path) -> None:
    (tmp_path / "full.log").symlink_to("/dev/full")
    child, _ = await start("print('x' * 500_000); print('END')", log_path=tmp_path / "full.log")
    assert await child.wait() == 0
    assert child.tail.endswith("END\n")


def test_a_log_file_is_bounded_and_keeps_the_newest_bytes(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", max_bytes=100)
    for number in range(50):
        log.write(b"%010d" % number)
    log.close()
    kept = (tmp_path / "a.log.1").read_bytes() + (tmp_path / "a.log").read_bytes()
    assert len(kept) <= 200
    assert kept.endswith(b"".join(b"%010d" % number for number in range(50))[-len(kept) :])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.log", "a.log.1"]


async def test_a_program_that_is_missing_or_has_no_run_bit_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        await ChildProcess.start(["no-such-program"], name="child")
    with pytest.raises(PermissionError, match=r"chmod \+x"):
        await ChildProcess.start(["./pointer"], name="child", cwd=tmp_path)


async def test_a_file_that_is_no_program_says_so(tmp_path: Path) -> None:
    pointer = tmp_path / "pointer"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    pointer.chmod(0o755)
    child = await ChildProcess.start([str(pointer)], name="child")
    assert await child.wait() == 126
    assert "cannot be executed: Exec format error" in child.tail


async def test_a_relative_program_is_found_in_its_working_directory(tmp_path: Path) -> None:
    program = tmp_path / "hello"
    program.write_text("#!/bin/sh\npwd\n")
    program.chmod(0o755)
    child = await ChildProcess.start(["./hello"], name="child", cwd=tmp_path)
    assert await child.wait() == 0
    assert child.tail.strip() == str(tmp_path)


async def test_no_descriptor_is_left_after_processes_have_come_and_gone() -> None:
    async def one() -> None:
        child = await ChildProcess.start(python("input()"), name="child", stdin=True)
        child.write(b"\n")
        await child.wait()
        await child.stop()

    await one()
    await asyncio.sleep(0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await one()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_tool_gives_its_code_and_output() -> None:
    result = await run_tool(python("import sys; print(sys.stdin.read()); sys.exit(4)"), DEADLINE, input=b"yes")
    assert (result.returncode, result.output) == (4, "yes\n")


async def test_a_tool_that_hangs_is_killed_at_its_timeout() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        await run_tool(python(IGNORES_TERM), timeout=0.3)
    assert time.monotonic() - started < DEADLINE / 4


async def test_a_tool_that_is_given_up_leaves_no_pipe_open(tmp_path: Path) -> None:
    """Its child has a session of its own: it is not killed with the tool, and still holds the tool's output."""
    note = tmp_path / "pid"
    before = open_pipes()
    tool = asyncio.create_task(run_tool(python(HOLDS_THE_OUTPUT.format(note=str(note))), timeout=DEADLINE))
    await until(note.exists)
    try:
        tool.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tool
        for _ in range(3):  # a transport is closed in one of the loop's next turns
            await asyncio.sleep(0)
        assert open_pipes() <= before
    finally:
        os.kill(int(note.read_text()), signal.SIGKILL)


def open_pipes() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(os.readlink(entry))
    return {name for name in found if name.startswith("pipe:")}


async def test_a_tool_that_is_missing_is_an_oserror() -> None:
    with pytest.raises(FileNotFoundError):
        await run_tool(["no-such-tool"], timeout=1)


def test_a_program_is_looked_up_in_the_path_of_its_environment(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert find_program("tool", env={"PATH": str(tmp_path)}) == str(tool)


@pytest.mark.parametrize(
    ("returncode", "words"),
    [(0, "by itself"), (255, "exit code 255"), (-9, "memory"), (-11, "crashed (SIGSEGV)"), (-15, "SIGTERM")],
)
def test_exit_codes_are_explained_in_plain_words(returncode: int, words: str) -> None:
    assert words in explain_exit(returncode)
