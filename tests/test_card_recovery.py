import asyncio
from pathlib import Path

import pytest

from qwen_service.card.recovery import CardRecovery
from qwen_service.errors import DeviceLost
from qwen_service.npu import AxclSmi
from tests.conftest import AXCL_SMI, Weather


def recovery(per_hour: int = 2) -> CardRecovery:
    return CardRecovery(AxclSmi(AXCL_SMI, timeout=1), per_hour=per_hour, patience=20, pause=0.02)


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
