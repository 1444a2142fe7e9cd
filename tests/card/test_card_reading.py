import time
from pathlib import Path

import pytest

from qwen_service.card.reading import AxclSmi, BoardFiles
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
