import asyncio
import time
from pathlib import Path

import pytest

from qwen_service.card.axcl_smi import Card
from qwen_service.card.faults import explain
from qwen_service.config import Settings
from qwen_service.models.machine import Machine
from qwen_service.npu import AxclSmi, BoardFiles, CardMonitor, Reading, Thresholds, card_monitor
from tests.conftest import AXCL_SMI, Weather


async def test_a_card_is_read_through_the_tool(weather: Weather) -> None:
    weather(cards=[{"temperature": 63}])
    reading = await AxclSmi(AXCL_SMI).read()
    assert reading is not None
    assert [card.temperature for card in reading.cards] == [63.0]
    assert reading.fault == ""


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("no_device", "dtoverlay=pciex1-compat-pi5,no-mip"),
        ("driver", "driver is not loaded"),
        ("garbage", "shows no card"),
        ("silent", "no output"),
    ],
)
async def test_what_is_wrong_is_told_in_plain_words(fault: str, expected: str, weather: Weather) -> None:
    weather(fault=fault)
    reading = await AxclSmi(AXCL_SMI).read()
    assert reading is not None
    assert expected in reading.fault
    assert reading.cards == ()


async def test_a_hanging_tool_is_given_up_after_its_timeout(weather: Weather) -> None:
    weather(fault="hang")
    start = time.monotonic()
    reading = await AxclSmi(AXCL_SMI, timeout=0.3).read()
    assert reading is not None
    assert "hung for 0.3 s" in reading.fault
    assert time.monotonic() - start < 5


async def test_a_missing_tool_is_named() -> None:
    reading = await AxclSmi("no-such-axcl-smi").read()
    assert reading is not None
    assert "axclhost package" in reading.fault


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


async def test_the_boards_own_npu_is_read_from_its_files(tmp_path: Path) -> None:
    missing = await BoardFiles(tmp_path).read()
    assert missing is not None
    assert "driver is not loaded" in missing.fault
    (tmp_path / "proc/ax_proc").mkdir(parents=True)
    (tmp_path / "proc/ax_proc/mem_cmm_info").write_text("total size=100KB(0MB),used=40KB(0MB + 40KB),remain=60KB\n")
    reading = await BoardFiles(tmp_path).read()
    assert reading is not None
    assert (reading.cards[0].cmm_free, reading.cards[0].temperature) == (60, None)


async def test_a_board_whose_sensor_cannot_be_read_is_one_without_a_temperature(tmp_path: Path) -> None:
    (tmp_path / "proc/ax_proc").mkdir(parents=True)
    (tmp_path / "proc/ax_proc/mem_cmm_info").write_text("total size=100KB(0MB),used=40KB(0MB + 40KB),remain=60KB\n")
    (tmp_path / "sys/class/thermal/thermal_zone0").mkdir(parents=True)
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").symlink_to("/proc/self/mem")  # is there; reading it is EIO
    reading = await BoardFiles(tmp_path).read()
    assert reading is not None
    assert (reading.cards[0].cmm_free, reading.cards[0].temperature) == (60, None)


@pytest.mark.parametrize(
    ("line", "permanent"),
    [
        ("axcl init fail, ret = 0x8030010b", True),
        ("open /dev/axcl_host fail", True),
        ("Set AXCL device failed{0x80300186}", False),
        ("request ports from device 1 fail, errno: 1 Operation not permitted", False),
        ("[  812.1] axcl: device 1: dead!", False),
        ("[E][runAxModelAxcl] AX_ENGINE_Execute failed 0x80060106", False),
    ],
)
def test_each_known_error_line_has_a_meaning_and_a_cure(line: str, permanent: bool) -> None:
    fault = explain(f"\x1b[31mnoise\n{line}\nmore noise")
    assert fault is not None
    assert fault.permanent is permanent
    assert fault.cure in str(fault)


def test_an_unknown_line_is_not_explained() -> None:
    assert explain("LLM init ok") is None
