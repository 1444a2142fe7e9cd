"""What several test modules share: the event loop, a card's weather, and the real models that scripts/setup.sh fetched."""

import asyncio
import gc
import json
import logging
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import uvloop

from qwen_service.operation.logs import OTHER_LOGGERS
from qwen_service.operation.logs import ROOT as ROOT_LOGGER
from qwen_service.settings import TOKENIZER_LOGGER
from qwen_service.text.tokenizer import LocalTokenizer
from tests import ROOT
from tests.simulated_card import Card, simulated_card
from tests.simulated_repl import Rig, repl_rig
from tests.small_gguf import write_small_gguf

SMALL_MERGES = 8000
MOST_SHOWN = 4000  # characters of a failed try
TESTS = Path(__file__).resolve().parent
TRIED_AGAIN = ("chaos", "web")  # storms of faults and a browser: they depend on what else the machine does
NOT_MEASURED = ("bench", "chaos", "clients", "live", "simulators", "web")  # mostly they run other processes
TEST_FILES = Path(os.environ.get("QWEN_VENV", ROOT / ".venv")) / "share" / "qwen-test"
AXCL_SMI = str(ROOT / "tests" / "simulators" / "axcl-smi")
Weather = Callable[..., None]
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_configure() -> None:
    # How long an example takes depends on what else the machine does; hypothesis allows 200 ms unless told.
    hypothesis.settings.register_profile("here", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
    hypothesis.settings.load_profile("here")
    _hear_interrupts()
    _find_python_itself()


def _hear_interrupts() -> None:
    """A shell's `&` makes its children ignore SIGINT, and theirs: to the programs that the tests start it must mean what it says."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _find_python_itself() -> None:
    """Put Python's own folder before a version manager's, whose `python3` is a shell script.

    Most simulators are started by `python3`, and that script takes five times as long as their own start.
    """
    found = shutil.which("python3")
    if found is not None and Path(found).read_bytes()[:2] == b"#!":
        os.environ["PATH"] = f"{Path(sys.executable).resolve().parent}:{os.environ['PATH']}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder: the tests that may be tried again, and those that --cov does not trace, since tracing costs time."""
    for item in items:
        folders = item.path.relative_to(TESTS).parts
        if folders[0] in TRIED_AGAIN:
            item.add_marker(pytest.mark.flaky(reruns=2))
        if not set(NOT_MEASURED).isdisjoint(folders):
            item.add_marker(pytest.mark.no_cover)
    _put_long_files_first(items)


def pytest_collection_finish() -> None:
    """Keep the garbage collector off what the imports made: a full collection of it takes 0.3 s, and some tests ask for one."""
    gc.collect()
    gc.freeze()


def _put_long_files_first(items: list[pytest.Item]) -> None:
    """Sort the files: those with a slow test first, then by their number of tests. A worker takes a file at a time, and
    must not begin with a long one when the others are done."""
    counts = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, -counts[item.path]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why a test was tried again: one that passes at last leaves no other trace."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"tried again: {report.nodeid}")
        terminalreporter.write_line(report.longreprtext[-MOST_SHOWN:])


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on uvloop, as the service does; those marked `both_loops` on asyncio's own loop too."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.get_closest_marker("both_loops"):
        factories["asyncio"] = asyncio.new_event_loop
    return factories


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Take off the handlers that a test's `serve` put on the loggers: pytest closes their stderr after the test."""
    loggers = [logging.getLogger(name) for name in (ROOT_LOGGER, TOKENIZER_LOGGER, *OTHER_LOGGERS)]
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        for handler in set(logger.handlers).difference(handlers):
            handler.close()
        logger.handlers[:] = handlers
        logger.propagate = propagate
        logger.setLevel(level)


def first_existing(what: str, *candidates: str | Path | None) -> Path:
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            return Path(candidate)
    pytest.skip(f"{what} is not here; scripts/setup.sh fetches it")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct GGUF."""
    return first_existing(
        SMOLLM2,
        os.environ.get("QWEN_TEST_SMOLLM2"),
        TEST_FILES / SMOLLM2,
        *ROOT.glob(f"models/**/{SMOLLM2}"),
    )


@pytest.fixture(scope="session")
def small_gguf(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fortieth of SmolLM2, by the same name: for tests that need a real engine, but not what it says."""
    path = tmp_path_factory.mktemp("small") / smollm2.name
    write_small_gguf(smollm2, path)
    return path


@pytest.fixture(scope="session")
def qwen_tokenizer_folder() -> Path:
    """A folder with Qwen3's real tokenizer.json and tokenizer_config.json."""
    return first_existing("Qwen3's tokenizer", os.environ.get("QWEN_TEST_TOKENIZER"), TEST_FILES / "qwen3")


@pytest.fixture(scope="session")
def small_tokenizer_folder(qwen_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3's tokenizer with its first merges only, which loads in 40 ms instead of 1 s: for tests that start whole services.

    The ids of its control tokens, and of the tokens it has, are Qwen3's; longer words become more tokens.
    """
    folder = tmp_path_factory.mktemp("tokenizer")
    definition = json.loads((qwen_tokenizer_folder / "tokenizer.json").read_bytes())
    model = definition["model"]
    model["merges"] = model["merges"][:SMALL_MERGES]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < 256 + SMALL_MERGES}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    shutil.copy(qwen_tokenizer_folder / "tokenizer_config.json", folder)
    return folder


@pytest.fixture
def weather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weather:
    """Tells the simulated axcl-smi what is true from now on."""
    monkeypatch.setenv("SIM_CARDS", str(tmp_path / "cards.json"))
    monkeypatch.setenv("SIM_LOG", str(tmp_path / "calls"))

    def change(**state: Any) -> None:
        (tmp_path / "cards.json").write_text(json.dumps(state))

    change()
    return change


@pytest.fixture(scope="session")
def tokenizer(qwen_tokenizer_folder: Path) -> LocalTokenizer:
    """Qwen3's."""
    return LocalTokenizer(qwen_tokenizer_folder)


@pytest.fixture
def card(tmp_path: Path, tokenizer: LocalTokenizer) -> Card:
    """A card whose runtime has not been started."""
    return lambda **options: simulated_card(tmp_path, tokenizer, **options)


@pytest.fixture
async def rig(tmp_path: Path, tokenizer: LocalTokenizer) -> AsyncIterator[Rig]:
    """Of the REPL program; nothing started yet."""
    async with repl_rig(tmp_path, tokenizer) as rig:
        yield rig
