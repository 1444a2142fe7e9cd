"""What every dialect does alike, because one pipeline answers all of them. docs/api.md has the table."""

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.case_service import Script, scripted_service
from tests.live_service import Live, live_service


@dataclass(frozen=True)
class Dialect:
    name: str
    path: str
    body: dict[str, Any] = field(default_factory=dict)
    odd: dict[str, Any] = field(default_factory=dict)  # what the engine `card` cannot honour
    ignored: str = "seed"
    full: int = 429
    conversation: str = "messages"

    def chat(self, *texts: str, **more: Any) -> dict[str, Any]:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
        return {"model": "tiny", self.conversation: messages, "stream": False} | self.body | more

    async def ask(self, live: Live, *texts: str) -> httpx.Response:
        return await live.http.post(self.path, json=self.chat(*texts, model=None) | self.body)


WEB = {"type": "web_search_20250305", "name": "web_search"}
DIALECTS = [
    Dialect("openai", "/v1/chat/completions", odd={"seed": 1}),
    Dialect(
        "responses",
        "/v1/responses",
        conversation="input",
        odd={"tools": [{"type": "web_search"}]},
        ignored="tools.web_search",
    ),
    Dialect("ollama", "/api/chat", {"model": "model"}, odd={"options": {"seed": 1}}, full=503),
    Dialect("anthropic", "/v1/messages", {"max_tokens": 32_000}, odd={"tools": [WEB]}, ignored="tools.web_search"),
]
each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.name for dialect in DIALECTS])


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def test_the_same_conversation_is_the_same_prompt(tmp_path: Path) -> None:
    script = Script()
    async with scripted_service(tmp_path, script, {}) as app, client_of(app) as http:
        for dialect in DIALECTS:
            body = dialect.chat("Hi", "Hello.", "How are you?", model="tiny")
            assert (await http.post(dialect.path, json=body)).status_code == 200
    assert len({prompt.token_ids for prompt in script.prompts}) == 1
    assert len(script.prompts) == len(DIALECTS)


@each_dialect
async def test_headers_say_what_was_changed(tmp_path: Path, dialect: Dialect) -> None:
    script = Script(engine="card")
    async with scripted_service(tmp_path, script, {}) as app, client_of(app) as http:
        body = dialect.chat("x" * 550, "Hello.", "How are you?", model="tiny", **dialect.odd)
        answer = await http.post(dialect.path, json=body)
    assert answer.status_code == 200
    assert answer.headers["x-served-by"]
    assert answer.headers["x-context-trimmed-messages"] == "2"
    assert answer.headers["x-ignored-parameters"] == dialect.ignored


@each_dialect
async def test_a_full_line_is_told_and_who_leaves_gives_up_the_place(
    tmp_path: Path, dialect: Dialect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with live_service(tmp_path, queue_size=1) as live:
        running = asyncio.create_task(dialect.ask(live, "one"))
        await live.until(running=1)
        waiting = asyncio.create_task(dialect.ask(live, "two"))
        await live.until(running=1, waiting=1)
        refused = await dialect.ask(live, "three")
        assert (refused.status_code, refused.headers["retry-after"].isdigit()) == (dialect.full, True)
        for request in (waiting, running):
            request.cancel()
        await live.until(running=0, waiting=0)
        live.engine.gate.set()
        assert (await dialect.ask(live, "four")).status_code == 200
        metrics = (await live.http.get("/metrics")).text
    assert live.engine.answered == ["one", "four"]
    assert f'dialect="{dialect.name}"' in metrics
    logged = [record.getMessage() for record in caplog.records if record.name == "qwen_service.access"]
    assert f"POST {dialect.path} {dialect.full}" in logged
