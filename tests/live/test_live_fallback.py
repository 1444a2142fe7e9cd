"""The CPU stands in for a card that is down, over HTTP: the card's program is a simulator, the CPU's model is real."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.card_service import PATIENCE, CardHost, CardService, card_service

FALLBACK: dict[str, Any] = {
    "model": "qwen", "fallback_model": "cpu", "fallback_after": 0.3, "slots": 1, "context_size": 512, "threads": 1
}  # fmt: skip


@pytest.fixture
def host(tmp_path: Path, small_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> CardHost:
    host = CardHost(tmp_path, small_tokenizer_folder)
    monkeypatch.setenv("SIM_CARDS", str(host.cards_file))
    monkeypatch.setenv("SIM_REPLY", "varied")
    host.install("qwen")
    return host


async def metric(service: CardService, line: str) -> float | None:
    text = (await service.http.get("/metrics")).text
    return next((float(row.split()[-1]) for row in text.splitlines() if row.startswith(f"{line} ")), None)


async def answered(service: CardService) -> httpx.Response:
    """Ask as an app does that is told 503 and to come back."""
    async with asyncio.timeout(PATIENCE):
        while (response := await service.chat("Hi", max_tokens=4)).status_code == 503:
            assert int(response.headers["retry-after"]) > 0
            await asyncio.sleep(0.05)
    assert response.status_code == 200, response.text
    return response


async def test_the_cpu_answers_while_the_card_is_kept_down_and_the_card_as_soon_as_it_is_back(
    host: CardHost, small_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.install_gguf(small_gguf)
    async with card_service(host, **FALLBACK) as service:
        await service.until_status("ok")
        by_card = await service.chat("Hi", max_tokens=4)
        assert (by_card.json()["model"], by_card.headers["x-served-by"]) == ("qwen", "ax_api")
        monkeypatch.setenv("SIM_FAIL", "no_device")  # whatever is started from now on
        host.kill()
        health = await service.until_status("degraded")
        assert health["details"]["model"]["state"] in ("restarting", "loading")
        first = await answered(service)
        second = await service.chat("Hi", max_tokens=4, model="qwen")
        for by_cpu in (first, second):
            assert (by_cpu.json()["model"], by_cpu.headers["x-served-by"]) == ("cpu", "llamacpp (fallback)")
        assert (await service.health())["status"] == "degraded"
        assert await metric(service, "qwen_fallback_active") == 1
        assert await metric(service, 'qwen_fallback_requests_total{model="cpu"}') == 2
        monkeypatch.delenv("SIM_FAIL")
        await service.until_status("ok")
        back = await service.chat("Hi", max_tokens=4)
        assert (back.json()["model"], back.headers["x-served-by"]) == ("qwen", "ax_api")
        assert await metric(service, "qwen_fallback_active") == 0


async def test_without_a_fallback_the_reason_is_told_with_503(host: CardHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_FAIL", "no_device")
    async with card_service(host, accelerator="required") as service:
        await service.until(lambda health: health["details"]["model"]["state"] == "failed")
        refused = await service.chat("Hi")
        assert refused.status_code == 503
        assert "No card was found" in refused.json()["error"]["message"]
        assert (await service.health())["status"] == "down"


async def test_a_required_card_that_this_machine_has_not_is_told_with_503(
    host: CardHost, small_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_FAIL", "host_node")
    host.install_gguf(small_gguf)
    (host.folder / "root" / "dev" / "axcl_host").unlink()
    async with card_service(host, accelerator="required") as service:
        await service.until(lambda health: health["details"]["model"]["state"] == "failed")
        refused = await service.chat("Hi")
        assert refused.status_code == 503
        assert "The card's driver is not loaded" in refused.json()["error"]["message"]


async def test_the_cpu_answers_on_a_machine_that_has_started_without_its_card(
    host: CardHost, small_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_FAIL", "host_node")
    host.install_gguf(small_gguf)
    (host.folder / "root" / "dev" / "axcl_host").unlink()
    async with card_service(host, **FALLBACK) as service:
        await service.until(lambda health: health["details"]["model"]["state"] == "failed")
        health = await service.until_status("degraded")
        by_cpu = await service.chat("Hi", max_tokens=4)
        assert (by_cpu.json()["model"], by_cpu.headers["x-served-by"]) == ("cpu", "llamacpp (fallback)")
        assert "The card's driver is not loaded" in health["details"]["model"]["error"]


async def test_without_a_card_auto_serves_the_model_of_the_cpu(host: CardHost, small_gguf: Path) -> None:
    host.install_gguf(small_gguf)
    for accelerator, device, served in (("auto", True, "qwen"), ("none", True, "cpu"), ("auto", False, "cpu")):
        if not device:
            (host.folder / "root" / "dev" / "axcl_host").unlink()
        async with card_service(host, **{**FALLBACK, "model": "auto", "accelerator": accelerator}) as service:
            await service.until_status("ok")
            assert (await service.chat("Hi", max_tokens=2)).json()["model"] == served
