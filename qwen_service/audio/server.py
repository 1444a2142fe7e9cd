"""Starts a vendor's speech program on a free loopback port, or joins a server by its URL, and talks HTTP with it."""

import asyncio
import os
import secrets
import socket
import stat
from collections.abc import Awaitable
from pathlib import Path

import httpx2

from qwen_service.audio.program import Answer, File, SpeechProgram, SpeechServer
from qwen_service.card.faults import explain
from qwen_service.errors import Died, ProtocolError, RuntimeFailure, StartFailed
from qwen_service.process.child import ChildProcess, explain_exit, find_program
from qwen_service.runtime import LoadProgress
from qwen_service.settings import Settings

START_TIMEOUT = 300.0  # seconds
LOOK = 2.0  # seconds to wait for an answer that needs no NPU
LOOK_EVERY = 10.0  # seconds between checks of a server that we did not start
LOOKS = 3  # failed checks after which it counts as gone
LAST_WORDS = 2.0  # seconds: a program that closes its connection may be exiting
WHERE = "It is part of the vendor's package for this card (AXERA-TECH on huggingface.co); docs/clients.md says more"


async def bring_up(program: SpeechProgram, settings: Settings, progress: LoadProgress) -> SpeechServer:
    if program.is_joined:
        return await JoinedServer.join(program, settings)
    return await OwnServer.start(program, settings, progress)


class _Client:
    """HTTP to one server. Raises ProtocolError when the server closes the connection."""

    models: tuple[str, ...] = ()

    def __init__(self, base_url: str, key: str) -> None:
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            timeout=httpx2.Timeout(LOOK, read=None, write=None),  # the caller bounds how long an answer may take
            trust_env=False,
            verify=base_url.startswith("https:"),  # else the CAs need not be read: 66 ms
            headers={"Connection": "close", **({"Authorization": f"Bearer {key}"} if key else {})},
        )

    async def post_form(self, path: str, fields: dict[str, str], file: File) -> Answer:
        files = {"file": (file.name, file.content, file.media_type)}
        return await self._answer(self._http.post(path, data=fields, files=files))

    async def post_json(self, path: str, body: dict[str, object]) -> Answer:
        return await self._answer(self._http.post(path, json=body))

    async def is_up(self) -> bool:
        """Whether the server answers. Remembers the models that it lists; not every server lists them."""
        try:
            answer = await self._http.get("/v1/models", timeout=LOOK)
            if answer.status_code == httpx2.codes.OK:
                self.models = tuple(str(model["id"]) for model in answer.json()["data"])
        except httpx2.TransportError:
            return False
        except (ValueError, LookupError, TypeError):
            return True
        return answer.status_code < 500 or answer.status_code == httpx2.codes.NOT_IMPLEMENTED

    async def _answer(self, asked: Awaitable[httpx2.Response]) -> Answer:
        try:
            response = await asked
        except httpx2.TransportError as error:
            raise await self._explained(error) from error
        return Answer(response.status_code, response.content)

    async def _explained(self, error: httpx2.TransportError) -> RuntimeFailure:
        return ProtocolError(f"The speech server closed the connection: {error!r}")


class OwnServer(_Client):
    """A vendor's program that we started. Made by `start`."""

    def __init__(self, program: SpeechProgram, port: int, key: str, child: ChildProcess) -> None:
        super().__init__(f"http://127.0.0.1:{port}", key)
        self._program, self._child = program, child

    @classmethod
    async def start(cls, program: SpeechProgram, settings: Settings, progress: LoadProgress) -> "OwnServer":
        folder = _folder(program)
        path = _find(program, folder)
        port, key = _free_port(), secrets.token_hex(24) if program.has_key else ""
        argv = [path, "--port", str(port), "--model_path", str(folder), *(["--api_key", key] if key else [])]
        progress("starting")
        try:
            child = await ChildProcess.start(
                argv,
                name=program.kind,
                cwd=folder,
                log_path=settings.log_folder / f"{program.kind}.log",
                pid_file=settings.state_folder / f"{program.kind}.pid",
            )
        except OSError as error:
            raise StartFailed(f"{program.kind}: {path} cannot be started: {error}.", permanent=True) from error
        server = cls(program, port, key, child)
        try:
            await server._until_up()
        except BaseException:
            await server.stop()
            raise
        return server

    async def failed(self) -> RuntimeFailure:
        return Died(self._end(await self._child.wait()))

    async def stop(self) -> None:
        await self._child.stop()
        await self._http.aclose()

    async def _until_up(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not await self.is_up():
                    if await self._child.ends_within(0.1):
                        fault = explain(self._child.tail)
                        library = "error while loading shared libraries" in self._child.tail
                        permanent = library or (fault is not None and fault.permanent)
                        raise StartFailed(self._end(await self._child.wait()), permanent=permanent)
        except TimeoutError:
            raise StartFailed(f"{self._program.kind}: the program was not ready within {START_TIMEOUT:g} s.") from None

    async def _explained(self, error: httpx2.TransportError) -> RuntimeFailure:
        if await self._child.ends_within(LAST_WORDS):  # its exit explains more
            return Died(self._end(await self._child.wait()))
        return await super()._explained(error)

    def _end(self, code: int) -> str:
        fault = explain(self._child.tail)
        lines = [line.strip() for line in self._child.tail.splitlines() if line.strip()]
        said = str(fault) if fault is not None else f"Its last line: {lines[-1][:200]}" if lines else ""
        return f"{self._program.program}: {explain_exit(code)}. {said}".strip()


class JoinedServer(_Client):
    """A server that somebody else runs. Made by `join`."""

    @classmethod
    async def join(cls, program: SpeechProgram, settings: Settings) -> "JoinedServer":
        key = _key(settings.speech_key_file)
        server = cls(program.place.rstrip("/").removesuffix("/v1"), key)
        if not await server.is_up():
            await server.stop()
            raise StartFailed(
                f"{program.kind}: no server answers at {program.place}. Start it, or correct the setting."
            )
        return server

    async def failed(self) -> RuntimeFailure:
        missed = 0
        while missed < LOOKS:
            await asyncio.sleep(LOOK_EVERY)
            missed = 0 if await self.is_up() else missed + 1
        return Died("The speech server no longer answers.")

    async def stop(self) -> None:
        await self._http.aclose()


def _folder(program: SpeechProgram) -> Path:
    folder = Path(program.place).expanduser().absolute()
    if not folder.is_dir():
        raise StartFailed(f"{program.kind}: there is no folder {folder}.", permanent=True)
    return folder


def _find(program: SpeechProgram, folder: Path) -> str:
    """Find the program: in the folder of its models first, then by PATH. A file without its run bit gets it."""
    for place in (folder / program.program, folder / "bin" / program.program):
        if os.sep not in program.program and place.is_file():
            _make_executable(place)
            return str(place)
    try:
        return find_program(program.program)
    except OSError as error:
        raise StartFailed(
            f"{program.kind}: {error}, neither in {folder} nor on PATH. {WHERE}.", permanent=True
        ) from None


def _make_executable(path: Path) -> None:
    """Set the run bit, which the vendor's packages lack. Raises StartFailed."""
    if os.access(path, os.X_OK):
        return
    try:
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except OSError as error:
        raise StartFailed(f"{path} is not executable (chmod +x): {error.strerror}.", permanent=True) from error


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _key(path: Path | None) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8").partition("\n")[0].strip() if path is not None else ""
    except OSError as error:
        raise StartFailed(f"speech_key_file: {path} cannot be read: {error.strerror}.", permanent=True) from error
