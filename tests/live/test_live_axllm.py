"""The whole service with axllm behind it, which a simulator plays."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

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
