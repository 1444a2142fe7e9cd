"""devices: [0, 1]: one process of the model per card behind one line. The processes are simulators, the rest is real."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.card_service import CardHost, CardService, card_service

TOKEN = 0.02  # seconds


@pytest.fixture
def host(tmp_path: Path, small_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> CardHost:
    host = CardHost(tmp_path, small_tokenizer_folder)
    monkeypatch.setenv("SIM_CARDS", str(host.cards_file))
    monkeypatch.setenv("SIM_REPLY", "varied")
    monkeypatch.setenv("SIM_TOKEN", str(TOKEN))
    return host


def answer(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def cached(response: httpx.Response) -> int:
    tokens: int = response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


def states(health: dict[str, Any]) -> dict[str, str]:
    return {engine["name"]: engine["state"] for engine in health["details"]["model"]["engines"]}


async def turns_of(service: CardService, *topics: str) -> list[list[httpx.Response]]:
    """A talk of three turns for each topic, the talks at once, turn by turn."""

    async def next_turn(talk: list[str], text: str) -> httpx.Response:
        talk.append(text)
        response = await service.chat(*talk)
        talk.append(answer(response))
        return response

    talks: list[list[str]] = [[] for _ in topics]
    rounds = [
        await asyncio.gather(
            *(next_turn(talk, f"{topic}, part {number}") for talk, topic in zip(talks, topics, strict=True))
        )
        for number in range(3)
    ]
    return [list(talk) for talk in zip(*rounds, strict=True)]


async def test_two_cards_serve_two_talks_at_once_and_each_returns_to_the_card_that_holds_it(host: CardHost) -> None:
    host.install("qwen")
    async with card_service(host, devices=(0, 1)) as service:
        await service.until_status("ok")
        assert host.pid(0) != host.pid(1)
        for talk in await turns_of(service, "The sea", "The mountains"):
            for before, after in pairwise(talk):
                held = before.json()["usage"]
                assert cached(after) >= held["prompt_tokens"] + held["completion_tokens"]


async def test_two_replies_run_at_the_same_time_and_a_third_waits(
    host: CardHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_REPLY", str([1000] * 200))
    host.install("qwen")
    async with card_service(host, devices=(0, 1)) as service:
        await service.until_status("ok")
        asked = [asyncio.create_task(service.chat(f"Number {number}", max_tokens=50)) for number in range(3)]
        health = await service.until(lambda health: health["details"]["queue"]["running"] == 2)
        assert health["details"]["queue"]["waiting"] == 1
        assert [(await one).status_code for one in asked] == [200, 200, 200]


async def test_a_card_whose_program_is_killed_comes_back_while_the_other_serves(host: CardHost) -> None:
    host.install("qwen")
    async with card_service(host, devices=(0, 1)) as service:
        await service.until_status("ok")
        killed = host.kill(1)
        health = await service.until_status("degraded")
        assert states(health)["qwen on card 0"] == "ready"
        assert states(health)["qwen on card 1"] in ("restarting", "loading")
        assert "SIGKILL" in health["details"]["model"]["error"]
        assert answer(await service.chat("Who is there?"))
        await service.until_status("ok")
        assert host.pid(1) != killed
        assert len({answer(one) for one in await asyncio.gather(service.chat("One"), service.chat("Two"))}) == 2


async def test_a_hot_card_gets_no_new_work_while_the_other_one_does(
    host: CardHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_REPLY", str([1000] * 200))
    host.install("qwen")
    async with card_service(host, devices=(0, 1), npu_poll_interval=0.1) as service:
        await service.until_status("ok")
        host.weather(cards=[{}, {"temperature": 95}])
        await service.until(lambda health: health["details"]["npu"]["cards"][1]["state"] == "paused")
        asked = [asyncio.create_task(service.chat(f"Number {number}", max_tokens=100)) for number in range(2)]
        await service.until(lambda health: health["details"]["queue"] == {"running": 1, "waiting": 1, "size": 16})
        host.weather(cards=[{}, {"temperature": 50}])
        await service.until(lambda health: health["details"]["queue"]["running"] == 2)
        assert [(await one).status_code for one in asked] == [200, 200]


async def test_a_second_card_is_refused_with_the_reason_where_the_build_takes_no_port(
    host: CardHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host.install("qwen", without=("port",))
    monkeypatch.setenv("SIM_PORT", str(host.ports))  # compiled in, as it were
    async with card_service(host, devices=(0, 1)) as service:
        health = await service.until(lambda health: states(health).get("qwen on card 1") == "failed")
        refused = health["details"]["model"]["engines"][1]
        assert "has its port compiled in, so it runs on one card only, and not on card 1" in refused["error"]
        assert "put {port} into the manifest" in refused["error"]
        await service.until_status("degraded")  # the first card serves
        assert answer(await service.chat("Who is there?"))
    assert f"runtime_port is {host.ports}, but qwen has no argument that passes it to its program" in caplog.text


async def test_a_build_that_takes_no_device_is_not_started_on_another_card(host: CardHost) -> None:
    host.install("qwen", without=("devices",))
    async with card_service(host, devices=(1,)) as service:
        health = await service.until(lambda health: health["details"]["model"]["state"] == "failed")
        assert "cannot be told to use card 1" in health["details"]["model"]["error"]
        assert host.pid(1) is None
        refused = await service.chat("Anyone?")
        assert refused.status_code == 503
        assert "cannot be told to use card 1" in refused.json()["error"]["message"]
