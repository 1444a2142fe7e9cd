import asyncio
from pathlib import Path

import pytest

from qwen_service.card.monitor import CardMonitor, Thresholds, card_monitor
from qwen_service.card.reading import AxclSmi, Reading
from qwen_service.card.smi import Card
from qwen_service.models.machine import Machine
from qwen_service.settings import Settings
from tests.conftest import AXCL_SMI, Weather


async def test_a_tool_that_is_in_use_says_nothing_about_the_card(weather: Weather) -> None:
    smi = AxclSmi(AXCL_SMI)
    monitor = CardMonitor(smi.read)
    await monitor.poll()
    weather(fault="busy")
    await monitor.poll()
    assert monitor.statuses[0].state == "ok"


def scripted(*readings: Reading | None) -> CardMonitor:
    script = iter(readings)

    async def read() -> Reading | None:
        return next(script)

    return CardMonitor(read, Thresholds(warn_above=70, pause_above=80, resume_below=65))


def at(*temperatures: float | None) -> Reading:
    return Reading(tuple(Card(index, temperature=value) for index, value in enumerate(temperatures)))


async def test_work_pauses_when_hot_and_resumes_only_when_cool() -> None:
    course = [60, 71, 81, 79, 66, None, 65, 64.9, 71]
    monitor = scripted(*(at(temperature) for temperature in course))
    states = []
    for _ in course:
        await monitor.poll()
        states.append(monitor.statuses[0].state)
    assert states == ["ok", "warm", "paused", "paused", "paused", "paused", "paused", "ok", "warm"]


async def test_the_reason_of_a_pause_names_card_temperature_and_end() -> None:
    monitor = scripted(at(40, 85))
    assert monitor.pause_reason([1]) == ""
    await monitor.poll()
    for devices in ([1], [0, 1]):
        reason = monitor.pause_reason(devices)
        assert reason == "Card 1 is hot: its temperature is 85 C; new work waits until it is below 65 C."


async def test_a_hot_card_is_no_reason_to_pause_another() -> None:
    monitor = scripted(at(40, 85))
    await monitor.poll()
    assert monitor.pause_reason([0]) == monitor.pause_reason([]) == ""


async def test_a_change_of_state_is_told_once() -> None:
    changes: list[str] = []
    monitor = scripted(at(60), at(61), at(90), at(91), at(50))
    monitor.on_change = lambda: changes.append(monitor.statuses[0].state)
    for _ in range(5):
        await monitor.poll()
    assert changes == ["ok", "paused", "ok"]


async def test_a_card_that_comes_late_is_watched_and_one_that_goes_is_missed(tmp_path: Path, weather: Weather) -> None:
    device = tmp_path / "dev" / "axcl_host"
    device.parent.mkdir()
    settings = Settings(axcl_smi=AXCL_SMI, npu_poll_interval=10)
    monitor = card_monitor(settings, Machine(tmp_path, "aarch64"), lambda: None)
    assert monitor is not None
    await monitor.poll()
    assert (monitor.statuses, monitor.fault) == ({}, "")
    device.touch()
    await monitor.poll()
    seen = [monitor.statuses[0].state]
    device.unlink()
    weather(fault="no_device")
    await monitor.poll()
    assert [*seen, monitor.statuses[0].state] == ["ok", "lost"]


async def test_a_lost_card_keeps_its_name_and_tells_why() -> None:
    monitor = scripted(at(60, 61), at(60), Reading(fault="The card does not answer."))
    await monitor.poll()
    await monitor.poll()
    assert (monitor.statuses[0].state, monitor.statuses[1].state) == ("ok", "lost")
    assert "vanished" in monitor.statuses[1].reason
    await monitor.poll()
    assert monitor.statuses[0].reason == "The card does not answer."
    assert monitor.statuses[0].card.temperature == 60


async def test_the_monitor_goes_on_for_ever(weather: Weather) -> None:
    monitor = CardMonitor(AxclSmi(AXCL_SMI).read)
    changed = asyncio.Event()
    monitor.on_change = changed.set
    monitor.start(interval=0.01)
    try:
        await asyncio.wait_for(changed.wait(), 20)
        changed.clear()
        weather(cards=[{"temperature": 95}])
        await asyncio.wait_for(changed.wait(), 20)
        assert monitor.statuses[0].state == "paused"
    finally:
        await monitor.stop()


async def test_a_defect_of_ours_is_told_and_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    faults: list[str] = []  # as each look found them
    hot = asyncio.Event()

    async def read() -> Reading:
        faults.append(monitor.fault)
        if len(faults) == 1:
            raise ZeroDivisionError
        return at(95)

    monitor = CardMonitor(read, on_change=hot.set)
    monitor.start(interval=0.01)
    try:
        async with asyncio.timeout(20):
            await hot.wait()
    finally:
        await monitor.stop()
    assert faults[:2] == ["", "The cards cannot be watched: ZeroDivisionError()"]
    assert (monitor.statuses[0].state, monitor.fault) == ("paused", "")
    assert "ZeroDivisionError" in caplog.text
