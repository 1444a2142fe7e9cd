"""A card that is lost, and the whole service on it with `npu_recovery: reboot`."""

from pathlib import Path

import pytest

from tests.card_service import CardHost, card_service
from tests.waiting import until


@pytest.fixture
def host(tmp_path: Path, small_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> CardHost:
    host = CardHost(tmp_path, small_tokenizer_folder)
    monkeypatch.setenv("SIM_CARDS", str(host.cards_file))
    (tmp_path / "calls").touch()
    monkeypatch.setenv("SIM_LOG", str(tmp_path / "calls"))
    host.install("qwen")
    return host


async def until_rebooted(folder: Path) -> None:
    await until(lambda: "reboot 0: y" in (folder / "calls").read_text())


@pytest.mark.parametrize("fault", ["hang", "no_device", "driver"])
async def test_a_card_that_is_lost_before_the_service_starts_is_brought_back(
    fault: str, host: CardHost, tmp_path: Path
) -> None:
    host.weather(fault=fault)
    async with card_service(host, npu_recovery="reboot", npu_timeout=1) as service:
        await service.until_status("ok")
        await until_rebooted(tmp_path)
        assert (await service.chat("Are you there?")).status_code == 200


async def test_a_card_that_only_axcl_smi_can_see_is_rebooted_for_its_program(
    host: CardHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_FAIL", "no_device")
    async with card_service(host, npu_recovery="reboot") as service:
        await until_rebooted(tmp_path)
        monkeypatch.delenv("SIM_FAIL")
        await service.until_status("ok")
        assert (await service.chat("Are you there?")).status_code == 200


async def test_without_leave_to_reboot_it_says_what_a_person_can_do(
    host: CardHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_FAIL", "axcl_init")
    async with card_service(host) as service:
        health = await service.until(lambda health: health["details"]["model"]["state"] == "failed")
        assert "modprobe axcl_host" in health["details"]["model"]["error"]
