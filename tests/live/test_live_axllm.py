"""The whole service with axllm behind it, which a simulator plays."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import ROOT
from tests.live.test_live_pictures import seeing

TOKEN = 0.05  # seconds
WORDS = " ".join(f"w{number}" for number in range(60))  # of a reply: 3 s
CHAT = "/v1/chat/completions"


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "enable_thinking": False, **fields}


async def running(http: httpx.AsyncClient) -> int:
    return int((await http.get("/health")).json()["details"]["queue"]["running"])


def computed(folder: Path) -> list[str]:
    lines = map(json.loads, (folder / "record").read_text().splitlines())
    return [line["token"] for line in lines if "token" in line]


async def test_a_stop_string_ends_the_answer_at_once_and_the_slot_is_held_until_axllm_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with seeing(tmp_path, monkeypatch, eyes=False, sim={"SIM_TOKEN": str(TOKEN)}) as http:
        answer = await http.post(CHAT, json=body(WORDS, stop=["w3"]))
        assert answer.json()["choices"][0]["message"]["content"] == "w0 w1 w2 "
        assert len(computed(tmp_path)) < 60
        assert await running(http) == 1
        after = await http.post(CHAT, json=body("mine alone"))
        assert after.json()["choices"][0]["message"]["content"] == "mine alone "
        assert computed(tmp_path)[-62:] == [f"{word} " for word in (*WORDS.split(), "mine", "alone")]
        assert await running(http) == 0


async def test_a_client_that_leaves_gives_up_its_connection_at_once_and_its_slot_when_axllm_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with seeing(tmp_path, monkeypatch, eyes=False, sim={"SIM_TOKEN": str(TOKEN)}) as http:
        async with http.stream("POST", CHAT, json=body(WORDS, stream=True)) as stream:
            await anext(stream.aiter_lines())
        assert await running(http) == 1
        async with asyncio.timeout(60):
            while await running(http):
                pass
        assert len(computed(tmp_path)) == 60


SYSTEM = "You are a patient teacher of physics and of music. Answer in a few sentences."


def prefilled(folder: Path) -> list[tuple[int, int]]:
    lines = map(json.loads, (folder / "record").read_text().splitlines())
    return [(line["slot"], line["prefill"]) for line in lines if "slot" in line]


async def test_two_clients_in_turn_with_one_system_message_cost_each_other_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIM_CARDS", raising=False)
    smi = str(ROOT / "tests/simulators/axcl-smi")
    async with seeing(tmp_path, monkeypatch, eyes=False, axcl_smi=smi, npu_poll_interval=0, warm="off") as http:
        engine = (await http.get("/health")).json()["details"]["model"]["engines"][0]
        assert engine["cache"] == "4 conversations, on the card"
        talks = {name: [{"role": "system", "content": SYSTEM}] for name in ("one", "two")}
        for turn in range(3):
            for name, messages in talks.items():
                question = " ".join(f"{name}{turn}of{number}" for number in range(50))
                messages.append({"role": "user", "content": question})
                answer = (await http.post(CHAT, json={"messages": messages, "enable_thinking": False})).json()
                assert answer["choices"][0]["message"]["content"] == question + " "
                messages.append({"role": "assistant", "content": question + " "})
                if turn:
                    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 130 * turn
    assert [slot for slot, _ in prefilled(tmp_path)] == [0, 1] * 3
    assert max(computed for _, computed in prefilled(tmp_path)[2:]) < 230  # a reply and a question, not the history


async def warmed(http: httpx.AsyncClient, count: int) -> None:
    async with asyncio.timeout(60):
        while f'qwen_warmings_total{{kind="conversation"}} {count}' not in (await http.get("/metrics")).text:
            pass


async def test_what_a_next_request_begins_with_is_prefilled_while_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIM_CARDS", raising=False)
    smi = str(ROOT / "tests/simulators/axcl-smi")
    async with seeing(tmp_path, monkeypatch, eyes=False, axcl_smi=smi, npu_poll_interval=0) as http:
        messages = [{"role": "system", "content": SYSTEM}]
        for turn in range(2):
            question = " ".join(f"one{turn}of{number}" for number in range(60))
            messages.append({"role": "user", "content": question})
            answer = (await http.post(CHAT, json={"messages": messages})).json()
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
            await warmed(http, turn + 1)
    (first, _), (warm, reply), (second, rest), _ = prefilled(tmp_path)
    assert {first, warm, second} == {0}
    assert 120 < reply < 150
    assert 120 < rest < 150  # the question; without warming, the reply, too


async def test_a_request_that_comes_while_something_is_prefilled_waits_for_it_and_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with seeing(tmp_path, monkeypatch, eyes=False, sim={"SIM_PREFILL": "0.5"}) as http:
        question = " ".join(f"one{number}" for number in range(60))
        await http.post(CHAT, json=body(question))
        async with asyncio.timeout(60):
            while len(prefilled(tmp_path)) < 2:
                await running(http)
        answer = await http.post(CHAT, json=body("mine alone"))
        assert answer.json()["choices"][0]["message"]["content"] == "mine alone "
        assert len(prefilled(tmp_path)) == 3
