"""Golden cases: each line of tests/cases/*.jsonl is one behaviour that clients rely on.

    {"it": "says hello", "POST /v1/chat/completions": {...body}, "status": 200, "json": {...pattern}}

What may stand in a line: `it`, one `METHOD /path` with the body (or null), `headers` to send; what the engine does:
`reply` (a text, or a list for one request after the other), `engine` (llama.cpp or card), `template` (qwen or plain),
`dies_after`; `settings`; and what is expected, as patterns (case_match.py): `status` (200), `answer` (headers),
`json` or `text` or `events` (SSE data) or `lines` (NDJSON); `prompt` (the text the engine got), `sampling`.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.case_match import difference
from tests.case_service import PLAIN_TEMPLATE, TEMPLATE, Script, scripted_service

FOLDER = Path(__file__).parent / "cases"
METHODS = ("GET ", "POST ", "HEAD ", "DELETE ", "OPTIONS ")
KEYS = {"it", "headers", "reply", "engine", "template", "dies_after", "settings", "status", "answer"} | {
    *("json", "text", "events", "lines", "prompt", "sampling")
}
CASES = [
    pytest.param(json.loads(line), id=f"{path.stem}: {json.loads(line)['it']}")
    for path in sorted(FOLDER.glob("*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()
    if line.strip()
]


class Services:
    """Cases without settings of their own, and whose engine survives, share one service: it takes a while to make."""

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        self._make_folder = make_folder
        self._shared: dict[tuple[str, str], tuple[httpx.AsyncClient, Script]] = {}
        self.stack = AsyncExitStack()

    async def get(self, case: dict[str, Any]) -> tuple[httpx.AsyncClient, Script]:
        script = _script(case)
        if case.keys() & {"settings", "dies_after"}:
            return await self._start(script, case.get("settings", {})), script
        key = (script.engine, script.template)
        if key not in self._shared:
            self._shared[key] = await self._start(script, {}), script
        client, shared = self._shared[key]
        shared.play(script.replies)
        return client, shared

    async def _start(self, script: Script, settings: dict[str, Any]) -> httpx.AsyncClient:
        app = await self.stack.enter_async_context(scripted_service(self._make_folder(), script, settings))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        await self.stack.enter_async_context(client)
        await client.post("/api/generate", json={"model": "tiny"})  # returns when the model is loaded
        return client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    services = Services(lambda: tmp_path_factory.mktemp("service"))
    async with services.stack:
        yield services


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES)
async def test_case(case: dict[str, Any], services: Services) -> None:
    (call,) = [key for key in case if key.startswith(METHODS)]
    assert set(case) - {call} <= KEYS
    client, script = await services.get(case)
    method, path = call.split(" ")
    response = await client.request(method, path, json=case[call], headers=case.get("headers"))
    _expect(case, response, script)


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.id for case in CASES]
    assert len(names) == len(set(names))


def test_a_talk_is_the_same_prompt_in_every_dialect() -> None:
    prompts: dict[str, dict[str, str]] = {}
    for line in (FOLDER / "dialects.jsonl").read_text(encoding="utf-8").splitlines():
        talk, _, dialect = json.loads(line)["it"].rpartition(" in ")
        prompts.setdefault(talk, {})[dialect] = json.loads(line)["prompt"]
    assert prompts
    for told in prompts.values():
        assert sorted(told) == ["anthropic", "ollama", "openai", "responses"]
        assert len(set(told.values())) == 1


def _script(case: dict[str, Any]) -> Script:
    reply = case.get("reply", "Hello there")
    return Script(
        replies=[reply] if isinstance(reply, str) else reply,
        engine=case.get("engine", "llama.cpp"),
        template=PLAIN_TEMPLATE if case.get("template") == "plain" else TEMPLATE,
        dies_after=case.get("dies_after"),
    )


def _expect(case: dict[str, Any], response: httpx.Response, script: Script) -> None:
    seen: dict[str, Any] = {"status": response.status_code, "answer": dict(response.headers)}
    seen["text"] = response.text
    for form, read in (
        ("json", response.json),
        ("events", lambda: _events(response)),
        ("lines", lambda: _lines(response)),
    ):
        if form in case:
            seen[form] = read()
    if script.prompts:
        ids = script.prompts[-1].token_ids
        seen["prompt"] = "".join(map(chr, ids))
        seen["sampling"] = asdict(script.samplings[-1])
    expected = {"status": 200} | {
        key: case[key] for key in ("status", "answer", "json", "text", "events", "lines") if key in case
    }
    expected |= {key: case[key] for key in ("prompt", "sampling") if key in case}
    assert difference(expected, seen) is None, response.text


def _events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    data = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def _lines(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]
