"""A picture's way through each dialect to axllm, which a simulator plays: what it is sent, and what comes back."""

import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen_service.app import create_app
from qwen_service.config import load_settings
from tests import ROOT
from tests.api.test_pictures import png
from tests.live_service import listening
from tests.runtimes.axllm.test_program import model_folder, put_on_path
from tests.runtimes.simulators.test_simulator_main_api import free_port

PICTURE = base64.b64encode(png()).decode()
URI = f"data:image/png;base64,{PICTURE}"
SEEN = f"image/png:{len(png())}"
OPENAI = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": URI}}]


@asynccontextmanager
async def seeing(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    eyes: bool = True,
    sim: dict[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A service whose model `eye` runs on axllm, with or without eyes."""
    place = model_folder(folder / "models" / "eye")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | ({"vlm_type": "Qwen3VL"} if eyes else {})))
    (folder / "bin").mkdir()
    shutil.copy(ROOT / "tests/simulators/axllm", folder / "bin" / "axllm")
    put_on_path(folder / "bin", monkeypatch)
    for name, value in {"SIM_RECORD": str(folder / "record"), **(sim or {})}.items():
        monkeypatch.setenv(name, value)
    given = {
        "model": "eye",
        "models_dir": folder / "models",
        "state_dir": folder / "state",
        "runtime_port": free_port(),
    }
    loaded = load_settings({**given, **settings})
    async with listening(create_app(loaded), loaded) as (_, http):
        while (await http.get("/health")).json()["status"] != "ok":
            pass
        yield http


def sent(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "record").read_text().splitlines() if (folder / "record").exists() else []
    return [event["request"] for event in map(json.loads, lines) if "request" in event]


def parts_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = body["messages"][-1]["content"]
    return parts


async def test_every_dialect_brings_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    ollama = [{"role": "user", "content": "What is this?", "images": [PICTURE]}]
    items = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": URI}]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"model": "eye", "messages": [{"role": "user", "content": OPENAI}]}),
        ("/v1/responses", {"model": "eye", "input": [{"role": "user", "content": items}]}),
        ("/v1/messages", {"model": "eye", "max_tokens": 99, "messages": [{"role": "user", "content": blocks}]}),
        ("/api/chat", {"model": "eye", "messages": ollama, "stream": False}),
        ("/api/generate", {"model": "eye", "prompt": "What is this?", "images": [PICTURE], "stream": False}),
    ]
    async with seeing(tmp_path, monkeypatch) as http:
        for path, body in asked:
            answer = await http.post(path, json=body)
            assert (answer.status_code, SEEN in answer.text) == (200, True), answer.text
        shown = (await http.post("/api/show", json={"model": "eye"})).json()["capabilities"]
        listed = (await http.get("/v1/models")).json()["data"][0]["capabilities"]
    assert [parts_of(body) for body in sent(tmp_path)] == [
        [{"type": "image_url", "image_url": {"url": URI}}, {"type": "text", "text": "What is this?"}]
    ] * len(asked)
    assert "vision" in shown
    assert "vision" in listed


async def test_a_history_with_pictures_goes_back_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with seeing(tmp_path, monkeypatch) as http:
        messages: list[dict[str, Any]] = [{"role": "user", "content": OPENAI}]
        thinking = {"enable_thinking": True}
        for question in ("And what colour?", "And how large?"):
            body = {"model": "eye", "messages": messages, "chat_template_kwargs": thinking}
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            reply = answer.json()["choices"][0]["message"]["content"]
            assert "<think>" not in reply
            messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": question}]
    assert "<think>" in sent(tmp_path)[-1]["messages"][1]["content"]


async def test_usage_has_what_the_engine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with seeing(tmp_path, monkeypatch, sim={"SIM_PROMPT_TOKENS": "217"}) as http:
        body: dict[str, Any] = {"model": "eye", "messages": [{"role": "user", "content": OPENAI}]}
        with_picture = (await http.post("/v1/chat/completions", json=body)).json()["usage"]
        body["messages"] = [{"role": "user", "content": "Hi"}]
        without = (await http.post("/v1/chat/completions", json=body)).json()["usage"]
    assert with_picture["prompt_tokens"] == 217
    assert without["prompt_tokens"] < 20


async def test_room_is_kept_for_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [{"type": "image_url", "image_url": {"url": URI}}] * 9
    async with seeing(tmp_path, monkeypatch) as http:
        body = {"model": "eye", "messages": [{"role": "user", "content": many}]}
        answer = await http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"max_images": 1}, "max_images"), ({"max_image_pixels": 1024}, "max_image_pixels"), ({}, "")],
)
async def test_pictures_are_bounded_before_anything_decodes_them(
    settings: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [*OPENAI, OPENAI[1]]
    async with seeing(tmp_path, monkeypatch, **settings) as http:
        body = {"model": "eye", "messages": [{"role": "user", "content": two}]}
        answer = await http.post("/v1/chat/completions", json=body)
    if name:
        assert (answer.status_code, name in answer.json()["error"]["message"]) == (413, True)
    assert len(sent(tmp_path)) == (0 if name else 1)


async def test_a_model_without_eyes_names_those_that_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = model_folder(tmp_path / "models" / "looker")
    (other / "config.json").write_text(json.dumps(json.loads((other / "config.json").read_text()) | {"vlm_type": "X"}))
    async with seeing(tmp_path, monkeypatch, eyes=False) as http:
        body = {"model": "eye", "messages": [{"role": "user", "content": OPENAI}]}
        answer = await http.post("/v1/chat/completions", json=body)
        ollama = {"model": "eye", "prompt": "?", "images": [PICTURE], "stream": False}
        generated = await http.post("/api/generate", json=ollama)
    assert (answer.status_code, generated.status_code) == (400, 400)
    assert "eye cannot see images. Models here that can: looker." in answer.json()["error"]["message"]
    assert "looker" in generated.json()["error"]
    assert sent(tmp_path) == []
