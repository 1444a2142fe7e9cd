"""How main_api comes up, and why it does not."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from qwen_service.errors import StartFailed
from qwen_service.runtime import Limits
from tests.runtimes.simulators.test_simulator_main_api import free_port
from tests.simulated_card import Card

START = 151644
DEADLINE = 20.0  # seconds


async def test_start_reports_the_limits_of_the_log_and_prefills_an_opening(card: Card) -> None:
    async with card(SIM_LARGEST="1024", SIM_CONTEXT="1500") as it:
        assert await it.runtime.start(it.progress.append) == Limits(context=1500, prompt=1024)
        assert it.progress[-1] == "loading 6/6"
        assert list(it.seen()) == [("reset", [START])]


async def test_a_program_that_says_ready_before_it_listens_is_waited_for(card: Card) -> None:
    async with card(SIM_LISTEN="0.5") as it:
        await it.start()
        assert list(it.seen()) == [("reset", [START])]


async def test_a_program_whose_ready_line_is_held_back_is_up_when_it_listens(card: Card) -> None:
    async with card(SIM_READY="held") as it:
        await it.start()
        assert list(it.seen()) == [("reset", [START])]


async def test_a_program_that_listens_elsewhere_has_not_started(card: Card) -> None:
    async with card(SIM_PORT=str(free_port())) as it:
        with pytest.raises(StartFailed, match=f"does not listen on port {it.port}"):
            await it.start()
    assert not it.pid_file.exists()


async def test_a_program_that_dies_before_it_listens_says_of_what(card: Card) -> None:
    loaded = asyncio.Event()
    async with card(SIM_LISTEN="60") as it:
        start = asyncio.create_task(it.runtime.start(lambda said: loaded.set() if said == "loading 6/6" else None))
        await asyncio.wait_for(loaded.wait(), DEADLINE)
        os.kill(int(it.pid_file.read_text()), signal.SIGKILL)
        with pytest.raises(StartFailed, match="SIGKILL"):
            await start


async def test_a_taken_port_is_refused_before_a_second_instance_shares_it(card: Card) -> None:
    async with card() as it:
        listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", it.port)
        async with listener:
            with pytest.raises(StartFailed, match=f"Port {it.port} is taken") as failed:
                await it.start()
    assert failed.value.permanent


@pytest.mark.parametrize(
    ("kind", "words", "permanent"),
    [
        ("no_device", "No card was found", True),
        ("axcl_init", "driver is not loaded", True),
        ("host_node", "driver is not loaded", True),
        ("held_card", "Another process holds it", False),
        ("layer", r"l1\.axmodel cannot be loaded", True),
    ],
)
async def test_a_failed_start_says_why_in_plain_words(card: Card, kind: str, words: str, permanent: bool) -> None:
    async with card(SIM_FAIL=kind) as it:
        with pytest.raises(StartFailed, match=words) as failed:
            await it.start()
    assert failed.value.permanent is permanent


async def test_a_card_that_fails_its_first_prefill_has_not_started(card: Card) -> None:
    async with card(SIM_STEP="5", stall_timeout=0.5) as it:
        with pytest.raises(StartFailed, match="first prefill"):
            await it.start()
    assert not it.pid_file.exists()


async def test_a_missing_embedding_file_is_named(card: Card, tmp_path: Path) -> None:
    async with card() as it:
        (tmp_path / "embed.bin").unlink()
        with pytest.raises(StartFailed, match=r"embed\.bin is missing") as failed:
            await it.start()
    assert failed.value.permanent


async def test_a_silent_load_is_given_up(card: Card) -> None:
    async with card(SIM_LOAD="60", start_timeout=0.5) as it:
        with pytest.raises(StartFailed, match=r"printed nothing for 0\.5 s"):
            await it.start()


async def test_a_slow_load_that_shows_progress_is_waited_for(card: Card) -> None:
    async with card(SIM_LOAD="6", start_timeout=4) as it:  # six signs of it, a second apart
        await it.start()
        assert it.progress[:6] == [f"loading {done}/6" for done in range(1, 7)]
