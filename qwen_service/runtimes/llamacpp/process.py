"""The process of llama.cpp: our worker, or the user's `llama-server` in its place, on a private socket."""

import asyncio
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen_service.errors import Died, StartFailed
from qwen_service.process.child import ChildProcess, explain_exit
from qwen_service.runtimes.local_http import HttpError, LocalHttp

SOCKET = "engine.sock"  # xllamacpp and llama-server recognise a socket by the ending .sock
SOCKET_PATH_LIMIT = 100  # bytes; the kernel's limit is 108
LOAD_TIMEOUT = 900.0  # seconds; a 4B model from a slow SD card takes minutes


class LlamaProcess:
    """The running process. Made by `start`."""

    def __init__(self, child: ChildProcess, folder: Path, model_path: Path) -> None:
        self.http = LocalHttp(folder / SOCKET)
        self._child = child
        self._folder = folder
        self._model_path = model_path

    @classmethod
    async def start(
        cls,
        *,
        llama_server: Path | None,
        model_path: Path,
        options: Mapping[str, int],
        mmproj: Path | None = None,
        flags: Sequence[str] = (),
        state_dir: Path,
        log_path: Path | None,
    ) -> "LlamaProcess":
        """Start, and return when the model is loaded. Raises StartFailed and leaves nothing behind."""
        worker = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
        program = worker if llama_server is None else [str(llama_server)]
        try:
            folder = private_folder(state_dir)
        except OSError as error:
            raise StartFailed(
                f"state_dir: no folder for the engine's socket can be made: {error}", permanent=True
            ) from error
        names = ["--model", str(model_path), "--host", str(folder / SOCKET)]
        names += ["--mmproj", str(mmproj)] if mmproj is not None else []
        numbers = [*(str(word) for option in options.items() for word in option), *flags]
        try:
            child = await ChildProcess.start([*program, *names, *numbers], name="llama.cpp", log_path=log_path)
        except OSError as error:
            folder.rmdir()
            raise StartFailed(f"llama.cpp cannot be started: {error}", permanent=True) from error
        except BaseException:  # cancelled
            folder.rmdir()
            raise
        process = cls(child, folder, model_path)
        try:
            await process._until_loaded()
        except BaseException:
            await process.stop()
            raise
        return process

    async def stop(self) -> None:
        try:
            await self._child.stop()
        finally:
            self.http.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    async def ended(self) -> Died:
        """Wait until the process has ended. Returns the reason."""
        returncode = await self._child.wait()
        return Died(f"llama.cpp: {explain_exit(returncode)}{self._complaint()}")

    async def _until_loaded(self) -> None:
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                while not await self._is_healthy():
                    if await self._child.ends_within(0.05):
                        raise self._start_failure(await self._child.wait())
        except TimeoutError as error:
            raise StartFailed(f"{self._model_path} was not loaded within {LOAD_TIMEOUT:.0f} s") from error

    async def _is_healthy(self) -> bool:
        try:
            await self.http.get("/health", timeout=10)
        except (OSError, HttpError):  # not listening yet; loading (503)
            return False
        return True

    def _start_failure(self, returncode: int) -> StartFailed:
        if (unknown := re.search(r"invalid argument: (\S+)", self._child.tail)) is not None:
            return StartFailed(
                f"llama_server: this build does not know {unknown[1]}, which is needed. Take a newer llama-server,"
                " or remove the setting: the engine that comes with the service runs then.",
                permanent=True,
            )
        return StartFailed(
            f"llama.cpp cannot load {self._model_path}: {explain_exit(returncode)}{self._complaint()}",
            permanent=returncode > 0 and "alloc" not in self._child.tail,  # a lack of memory may pass
        )

    def _complaint(self) -> str:
        """The first error in its output, else its last line."""
        lines = [line.strip() for line in self._child.tail.splitlines() if line.strip()]
        errors = [line.partition(" E ")[2] for line in lines if " E " in line]
        return f" ({(errors or lines[-1:])[0]})" if lines else ""


def thread_count(asked: int | None) -> int:
    """How many threads compute: as many as `asked` for, else all cores but one."""
    return asked or max(1, (os.cpu_count() or 1) - 1)


def check_gguf(path: Path) -> int:
    """Check the file and return its size in bytes. Raises StartFailed when no engine could load it."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
        size = path.stat().st_size
    except OSError as error:
        raise StartFailed(f"the model file {path} cannot be read: {error.strerror}", permanent=True) from error
    if head.startswith(b"version https://"):
        raise StartFailed(f"{path} is a git-lfs pointer, not the model: fetch it again with git-lfs", permanent=True)
    if not head.startswith(b"GGUF"):
        raise StartFailed(f"{path} is not a GGUF file: it does not begin with `GGUF`", permanent=True)
    return size


def private_folder(parent: Path) -> Path:
    """Make a folder for the socket, in `parent` unless that path is too long for a socket."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="llamacpp-", dir=parent.absolute()))
    if len(os.fsencode(folder / SOCKET)) <= SOCKET_PATH_LIMIT:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="qwen-llamacpp-"))
