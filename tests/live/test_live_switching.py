"""Switching between models of a card, over HTTP: the programs are simulators in processes of their own."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.card_service import CardHost, CardService, card_service
from tests.service_process import is_alive

GIB = 1024 * 1024  # KiB
LOAD = "/v1/models/load"


@pytest.fixture
def host(tmp_path: Path, small_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> CardHost:
    host = CardHost(tmp_path, small_tokenizer_folder)
    monkeypatch.setenv("SIM_CARDS", str(host.cards_file))
    monkeypatch.setenv("SIM_REPLY", str([1000] * 60))
    monkeypatch.setenv("SIM_LOAD", "0.5")
    host.install("one", aliases=["uno"], card_memory_kib=4 * GIB)
    host.install("two", card_memory_kib=4 * GIB)
    return host


async def steps(service: CardService, model: str) -> AsyncIterator[dict[str, Any]]:
    async with service.http.stream("POST", LOAD, json={"model": model, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


async def models(service: CardService) -> dict[str, dict[str, Any]]:
    return {model["id"]: model for model in (await service.http.get("/v1/models")).json()["data"]}


async def test_a_switch_is_told_step_by_step_and_seen_in_health(host: CardHost) -> None:
    async with card_service(host, model="one") as service:
        await service.until_status("ok")
        old = host.pid()
        listed = await models(service)
        assert {name: model["state"] for name, model in listed.items()} == {"one": "loaded", "two": "installed"}
        assert all(len(model["version"]) == 12 and model["size"] >= 0 for model in listed.values())
        told, seen = [], set()
        async for step in steps(service, "two"):
            told.append(step)
            health = await service.health()
            seen.add((health["details"]["switching_to"], health["details"]["model"]["progress"]))
        assert told[-1] == {"model": "two", "state": "ready", "progress": ""}
        assert any(step["state"] == "loading" and step["progress"].startswith("loading ") for step in told)
        assert any(to == "two" and str(progress).startswith("loading ") for to, progress in seen)
        assert {name: model["state"] for name, model in (await models(service)).items()} == {
            "one": "installed",
            "two": "loaded",
        }
        assert old is not None
        assert not is_alive(old)
        assert (await service.chat("Hi", model="two")).json()["model"] == "two"


async def test_a_switch_lets_the_running_reply_end_and_sends_new_requests_away(
    host: CardHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_TOKEN", "0.05")
    async with card_service(host, model="one") as service:
        await service.until_status("ok")
        running = asyncio.create_task(service.chat("Hi"))
        await service.until(lambda health: health["details"]["queue"]["running"] == 1)
        told: list[dict[str, Any]] = []
        async for step in steps(service, "two"):
            if not told:
                refused = await service.chat("Me, too")
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
                assert "one is being replaced by two" in refused.json()["error"]["message"]
            told.append(step)
        assert told[0]["state"] == "draining"
        assert told[0]["progress"] == "requests to one that are running: 1"
        assert (await running).json()["usage"]["completion_tokens"] == 60


@pytest.mark.parametrize("path", [LOAD, "/admin/reload"])
async def test_a_client_that_leaves_ends_a_switch_that_is_still_waiting(
    host: CardHost, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("SIM_TOKEN", "0.05")
    async with card_service(host, model="one") as service:
        await service.until_status("ok")
        running = asyncio.create_task(service.chat("Hi"))
        await service.until(lambda health: health["details"]["queue"]["running"] == 1)
        body = {"model": "two"} if path == LOAD else {"what": "model"}
        switch = asyncio.create_task(service.http.post(path, json=body))
        await service.until(lambda health: health["details"]["switching_to"])
        switch.cancel()
        health = await service.until(lambda health: health["details"]["switching_to"] is None)
        assert health["details"]["queue"]["running"] == 1
        assert (await running).json()["model"] == "one"
        assert (await service.chat("Hi again")).json()["model"] == "one"


async def test_the_new_model_is_started_when_the_card_has_room_for_it(host: CardHost) -> None:
    async with card_service(host, model="one") as service:
        await service.until_status("ok")
        host.weather(cards=[{"cmm_used": 5 * GIB}])  # the driver has not yet given back what the last one held
        told = []
        async for step in steps(service, "two"):
            told.append(step["progress"])
            if step["progress"] == "looking at card 0":
                await asyncio.sleep(1.5)  # longer than one look: still nothing is started
                assert (await service.health())["details"]["model"]["progress"] == "looking at card 0"
                assert host.pid() is None
                host.weather(cards=[{}])
        assert "looking at card 0" in told
        assert (await service.chat("Hi")).json()["model"] == "two"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_load_goes_back_to_the_old_model_and_says_why(host: CardHost, *, stream: bool) -> None:
    host.install("broken", arguments=["--nonsense", "1"])
    async with card_service(host, model="one") as service:
        await service.until_status("ok")
        if stream:
            error = [step async for step in steps(service, "broken")][-1]["error"]
        else:
            response = await service.http.post(LOAD, json={"model": "broken"})
            assert response.status_code == 503
            error = response.json()["error"]
        assert error["code"] == "engine_start_failed"
        assert "broken could not be loaded: This build of the vendor's program does not take" in error["message"]
        assert "undefined option: --nonsense" in error["message"]
        assert error["message"].endswith("The service went back to one.")
        await service.until_status("ok")
        assert (await service.chat("Hi")).json()["model"] == "one"


async def test_what_cannot_be_loaded_is_refused_before_anything_is_stopped(host: CardHost) -> None:
    async with card_service(host, model="one") as service:
        await service.until_status("ok")
        pid = host.pid()
        unknown = await service.http.post(LOAD, json={"model": "three", "stream": True})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        same = [step async for step in steps(service, "uno")]
        assert same == [{"model": "one", "state": "ready", "progress": ""}]
        assert host.pid() == pid


async def test_a_request_for_another_model_of_the_card_is_refused_unless_autoload_is_on(host: CardHost) -> None:
    for autoload, status in (("auto", 409), ("off", 409), ("on", 200)):
        async with card_service(host, model="one", autoload=autoload) as service:
            await service.until_status("ok")
            response = await service.chat("Hi", model="two")
            assert response.status_code == status
            if status == 409:
                assert response.json()["error"]["code"] == "model_not_loaded"
                assert "two is installed, but not loaded (loaded: one)" in response.json()["error"]["message"]
            else:
                assert response.json()["model"] == "two"
