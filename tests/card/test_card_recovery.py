import asyncio
from pathlib import Path

import pytest

from qwen_service.card.faults import CardFault, explain
from qwen_service.card.reading import AxclSmi
from qwen_service.card.recovery import CardRecovery, reboot_may_help
from qwen_service.errors import DeviceLost, StartFailed
from tests.conftest import AXCL_SMI, Weather


def recovery(per_hour: int = 2, device_file: Path = Path("/dev/null")) -> CardRecovery:
    return CardRecovery(AxclSmi(AXCL_SMI, timeout=4), device_file, per_hour=per_hour, patience=60, pause=0.02)


def fault(line: str) -> CardFault:
    found = explain(line)
    assert found is not None
    return found


def reboots(folder: Path) -> int:
    return (folder / "calls").read_text().count(": y")


async def test_a_card_that_answers_and_has_room_is_left_alone(weather: Weather, tmp_path: Path) -> None:
    await recovery().prepare(0, needed_kib=4_000_000)
    assert "reboot" not in (tmp_path / "calls").read_text()


async def test_a_lost_card_is_rebooted_and_waited_for(weather: Weather, tmp_path: Path) -> None:
    weather(cards=[{}, {"dead": True, "cmm_used": 7_000_000}])
    await recovery().prepare(1, needed_kib=4_000_000)
    assert "reboot 1: y" in (tmp_path / "calls").read_text()


async def test_reboots_are_bounded_per_hour(weather: Weather, tmp_path: Path) -> None:
    care = recovery(per_hour=2)
    for _ in range(2):
        weather(cards=[{"dead": True}])
        await care.prepare(0, needed_kib=0)
    weather(cards=[{"dead": True}])
    with pytest.raises(DeviceLost, match=r"rebooted 2 times in the last hour.*npu_reboots_per_hour"):
        await care.prepare(0, needed_kib=0)
    assert (tmp_path / "calls").read_text().count(": y") == 2


async def test_without_permission_a_lost_card_is_left_to_the_runtime(weather: Weather, tmp_path: Path) -> None:
    weather(fault="no_device")
    await recovery(per_hour=0).prepare(0, needed_kib=0)
    assert "reboot" not in (tmp_path / "calls").read_text()


async def test_a_full_card_is_waited_for(weather: Weather) -> None:
    weather(cards=[{"cmm_used": 7_000_000}])
    waiting = asyncio.create_task(recovery().prepare(0, needed_kib=4_000_000))
    done, _ = await asyncio.wait({waiting}, timeout=0.3)
    assert not done
    weather(cards=[{"cmm_used": 18876}])
    await asyncio.wait_for(waiting, 20)


@pytest.mark.parametrize("lost", ["hang", "no_device", "driver", "garbage", "silent"])
async def test_a_card_is_rebooted_whatever_axcl_smi_makes_of_its_loss(
    lost: str, weather: Weather, tmp_path: Path
) -> None:
    weather(fault=lost)
    await recovery().prepare(0, needed_kib=0)
    assert reboots(tmp_path) == 1


async def test_nothing_is_rebooted_where_the_driver_is_not_loaded(weather: Weather, tmp_path: Path) -> None:
    weather(fault="driver")
    await recovery(device_file=tmp_path / "axcl_host").prepare(0, needed_kib=0)
    assert reboots(tmp_path) == 0


async def test_without_axcl_smi_no_card_is_waited_for_and_no_reboot_planned() -> None:
    care = CardRecovery(AxclSmi("no-such-axcl-smi"), Path("/dev/null"), per_hour=2, patience=600, pause=0.02)
    care.note(0, fault("axcl: device 1: dead!"))
    async with asyncio.timeout(60):
        await care.prepare(0, needed_kib=4_000_000)
    assert not care.will_reboot(0)


@pytest.mark.parametrize(
    ("line", "complaints"),
    [
        ("axcl: device 1: dead!", 1),
        ("[E] no device connected", 1),
        ("[E] axcl init fail, ret = 0x8030010b", 1),
        ("[E] AX_ENGINE_Execute failed ret=0x80060301", 3),
    ],
)
async def test_a_card_that_looks_well_is_rebooted_when_its_runtime_complains(
    line: str, complaints: int, weather: Weather, tmp_path: Path
) -> None:
    care = recovery()
    course = []
    for _ in range(complaints):
        await care.prepare(0, needed_kib=0)
        course.append(reboots(tmp_path))
        care.note(0, fault(line))
    for _ in range(2):
        await care.prepare(0, needed_kib=0)
        course.append(reboots(tmp_path))
    assert course == [0] * complaints + [1, 1]


async def test_a_card_that_only_looks_lost_is_used_when_no_reboot_is_left(weather: Weather, tmp_path: Path) -> None:
    care = recovery(per_hour=1)
    for _ in range(3):
        care.note(0, fault("[E] no device connected"))
        await care.prepare(0, needed_kib=0)
    assert reboots(tmp_path) == 1
    assert not care.will_reboot(0)


async def test_a_card_that_another_process_holds_is_not_rebooted(weather: Weather, tmp_path: Path) -> None:
    care = recovery()
    for _ in range(5):
        care.note(0, fault("[E] Set AXCL device failed{0x80300186}"))
        await care.prepare(0, needed_kib=0)
    assert reboots(tmp_path) == 0


async def test_a_start_that_failed_for_good_is_tried_again_after_a_reboot_only() -> None:
    care = recovery()
    for complaint, permanent in (("[E] Set AXCL device failed{0x80300186}", True), ("[E] no device connected", False)):
        care.note(0, fault(complaint))
        with pytest.raises(StartFailed, match="so it is") as failed, reboot_may_help(care, (0, 1)):
            raise StartFailed("so it is", permanent=True)
        assert failed.value.permanent is permanent
    with pytest.raises(StartFailed) as failed, reboot_may_help(None, (0,)):
        raise StartFailed("on the board itself", permanent=True)
    assert failed.value.permanent
