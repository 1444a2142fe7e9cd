"""qwen-service build-engine: builds llama.cpp for exactly this processor, to replace the built-in engine.

The built-in engine runs on every processor of a kind, so it does not use the newer instructions of yours. This builds
llama-server from the same pinned sources, measures both, and sets `llama_server` if the new one is faster.
"""

import argparse
import asyncio
import os
import re
import shutil
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qwen_service.chat import ChatRequest, Finished, Message, Sampling
from qwen_service.commands.progress import add_models_dir_flags, add_progress_flag, settings_from, sink_for
from qwen_service.commands.settings import is_packaged, set_in_file
from qwen_service.config import settings_file
from qwen_service.engines.waiting_room import Patience, WaitingRoom
from qwen_service.errors import InstallError, StartFailed
from qwen_service.install.engine_source import PINNED, EngineSource, fetch_source, unpack
from qwen_service.install.progress import ProgressSink
from qwen_service.models.catalog import Catalog
from qwen_service.process.child import ChildProcess, find_program
from qwen_service.service import Service
from qwen_service.settings import Settings

# The question by which an engine's speed is measured: about 600 tokens, and a greedy reply.
PROMPT = "Summarize in three sentences. " + " ".join(
    f"On day {day} the boat left at {day % 12} o'clock with {day * 7} crates, and the crew wrote down wind and weather."
    for day in range(1, 25)
)
REPLY_TOKENS = 64
LOADING = 600.0  # seconds
SYSTEM_FOLDER = Path("/var/lib/qwen/engine")
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # nothing but the archive is fetched
)
MEMORY_PER_JOB = 1 << 30  # bytes that a compiler takes at most
PERCENT = re.compile(rb"\[ *(\d+)%\]")
STOPPED = "\nStopped. The engine in use is unchanged; run the same command to continue with what has been compiled."


def add_build_engine_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("build-engine", help="build llama.cpp for this processor", description=__doc__)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="folder to install the engine in")
    parser.add_argument(
        "--source", type=Path, metavar="FILE", help=f"use this copy of {PINNED.name} instead of downloading it"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="compilers that run at once (default: by cores and memory)"
    )
    parser.add_argument(
        "--no-measure", action="store_true", help="use the new engine without measuring whether it is faster"
    )
    add_models_dir_flags(parser)
    add_progress_flag(parser)
    parser.set_defaults(run=run_build_engine)


def run_build_engine(options: argparse.Namespace) -> int:
    folder = options.folder or default_folder()
    try:
        with sink_for(options.progress) as sink:
            program = build(PINNED, folder, sink, local=options.source, jobs=options.jobs or default_jobs())
        return _switch(options, program)
    except KeyboardInterrupt:
        print(STOPPED)
        return 130


def build(source: EngineSource, folder: Path, sink: ProgressSink, *, local: Path | None, jobs: int) -> Path:
    """Build and install the program, at once or not at all. Raises an InstallError."""
    cmake = _tool("cmake")
    _tool("c++")
    work = folder / "build"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InstallError(
            f"{folder} cannot be written: {error.strerror}. Use sudo, or name another folder with --folder."
        ) from None
    sources, compiled = work / "llama.cpp", work / "compiled"
    unpacked = work / "unpacked"
    if not unpacked.is_file() or unpacked.read_text(encoding="ascii") != source.sha256:
        unpack(fetch_source(source, work, sink, local=local), source, sources)
        shutil.rmtree(compiled, ignore_errors=True)
        unpacked.write_text(source.sha256, encoding="ascii")
    sink.stage(f"Compiling llama-server with {jobs} compilers at once: a Raspberry Pi 5 takes 15 to 30 minutes ...")
    asyncio.run(_run([cmake, "-S", str(sources), "-B", str(compiled), *FLAGS], lambda _: None))
    command = [cmake, "--build", str(compiled), "--target", "llama-server", "-j", str(jobs)]
    asyncio.run(_run(command, _percent(sink)))
    program = folder / "llama-server"
    new = program.with_suffix(".new")
    shutil.copy(compiled / "bin/llama-server", new)
    new.replace(program)
    if (sources / "LICENSE").is_file():
        shutil.copy(sources / "LICENSE", folder / "LICENSE.llama.cpp")
    shutil.rmtree(work)
    sink.stage(f"{program} is built")
    return program


def default_folder() -> Path:
    if is_packaged():
        return SYSTEM_FOLDER
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "qwen-service/engine"


def default_jobs() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, memory // MEMORY_PER_JOB))


def _tool(name: str) -> str:
    try:
        return find_program(name)
    except OSError:
        raise InstallError(f"The program {name} is missing. Install it: sudo apt install cmake g++ make") from None


async def _run(command: list[str], on_output: Callable[[bytes], None]) -> None:
    child = await ChildProcess.start(command, name=command[0], on_output=on_output)
    try:
        code = await child.wait()
    finally:
        await child.stop()
    if code != 0:
        raise InstallError(f"{' '.join(command[:2])} failed. Its last output:\n{child.tail.strip()[-2000:]}")


def _percent(sink: ProgressSink) -> Callable[[bytes], None]:
    told = 0

    def on_output(data: bytes) -> None:
        nonlocal told
        reached = max((int(match) for match in PERCENT.findall(data)), default=0) // 10 * 10
        if reached > told:
            told = reached
            sink.stage(f"{told} %")

    return on_output


def _switch(options: argparse.Namespace, program: Path) -> int:
    """Set llama_server, unless the new engine was measured and is not faster."""
    settings = settings_from(options)
    if not options.no_measure and not _is_faster(settings, program):
        print("The new engine is not faster here: llama_server stays as it is.")
        return 0
    file = settings_file(options.config)
    set_in_file(file, {"llama_server": str(program)})
    print(f"{file}: llama_server: {program}\nThe next start of the service uses it.")
    return 0


def _is_faster(settings: Settings, program: Path) -> bool:
    catalog = Catalog.load(settings.models_dir.expanduser())
    model = next((m for m in catalog.chatting() if m.spec.runtime == "llamacpp"), None)
    if model is None:
        print("No CPU model is installed to compare the engines with: the new engine is used.")
        return True
    before = _measured(settings, model.name, "built in", None)
    after = _measured(settings, model.name, "built here", program)
    return after.prefill > before.prefill and after.decode > 0.9 * before.decode


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Tokens per second."""

    prefill: float
    decode: float

    def __str__(self) -> str:
        return f"reads {self.prefill:.0f}, writes {self.decode:.1f} tokens/s"


async def measure(settings: Settings) -> EngineSpeed:
    """Measure the model and the engine of the settings. Raises a ServiceError."""
    service = Service(settings)
    try:
        await service.start()
        model = await service.models.obtain(None)
        await model.ready(WaitingRoom(1, LOADING), Patience(LOADING))
        await _ask(service, "Warm up.", 4)
        return await _ask(service, PROMPT, REPLY_TOKENS)
    finally:
        await service.stop()


async def _ask(service: Service, text: str, tokens: int) -> EngineSpeed:
    sampling = Sampling(max_tokens=tokens, temperature=0)
    request = ChatRequest(id="speed", messages=(Message("user", text),), sampling=sampling)
    async with aclosing(service.chat.stream(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                read = event.usage.prompt_tokens - event.usage.cached_tokens
                times = event.timings
                return EngineSpeed(
                    read / max(times.prefill, 1e-6), event.usage.completion_tokens / max(times.generation, 1e-6)
                )
    raise StartFailed("The engine gave no reply to the question of the measurement.")


def _measured(settings: Settings, model: str, name: str, engine: Path | None) -> EngineSpeed:
    with TemporaryDirectory(prefix="qwen-engine-") as folder:  # root must not write into the service's log folder
        own = {"state_dir": Path(folder), "log_dir": Path(folder), "model": model, "llama_server": engine}
        speed = asyncio.run(measure(settings.model_copy(update=own)))
    print(f"{model}, {name}: {speed}", flush=True)
    return speed
