import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_service.api.keys import new_key
from qwen_service.operation.logs import ROOT
from tests.live_service import ScriptedEngine, live_service


def talking() -> ScriptedEngine:
    engine = ScriptedEngine()
    engine.gate.set()
    return engine


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Set by the tests below, and back."""
    logger = logging.getLogger(ROOT)
    before = logger.level
    yield
    logger.setLevel(before)


async def test_a_running_and_a_waiting_request_are_cancelled_by_their_ids(tmp_path: Path) -> None:
    async with live_service(tmp_path) as live:
        running = asyncio.create_task(live.chat(headers={"X-Request-Id": "r1"}))
        await live.until(running=1)
        waiting = asyncio.create_task(live.chat(headers={"X-Request-Id": "r2"}))
        await live.until(waiting=1)
        assert (await live.http.get("/admin/requests")).json() == {"requests": ["r1", "r2"]}
        assert (await live.http.post("/admin/cancel/r2")).json() == {"cancelled": 1}
        assert (await waiting).json()["error"]["code"] == "cancelled"
        assert (await live.http.post("/admin/cancel/r1")).json() == {"cancelled": 1}
        assert (await running).json()["error"]["code"] == "cancelled"
        await live.until(running=0, waiting=0)
        assert (await live.http.post("/admin/cancel/r1")).json() == {"cancelled": 0}


async def test_a_stream_that_is_cancelled_ends_with_an_error_not_with_done(tmp_path: Path) -> None:
    async with live_service(tmp_path) as live:
        running = asyncio.create_task(live.chat(headers={"X-Request-Id": "r1"}, stream=True))
        await live.until(running=1)
        await live.http.post("/admin/cancel/r1")
        text = (await running).text
    assert '"code":"cancelled"' in text
    assert "[DONE]" not in text


async def test_the_log_level_changes_at_once(tmp_path: Path) -> None:
    async with live_service(tmp_path, talking()) as live:
        assert (await live.http.post("/admin/log-level", json={"level": "debug"})).json() == {"level": "debug"}
        assert logging.getLogger(ROOT).level == logging.DEBUG
        assert (await live.http.post("/admin/log-level", json={"level": "loud"})).status_code == 400


async def test_reload_applies_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    async with live_service(tmp_path, talking()) as live:
        live.changes.update(log_level="warning", queue_size=3)
        answer = (await live.http.post("/admin/reload", json={})).json()
        assert (answer["applied"], answer["needs_restart"]) == (["log_level"], ["queue_size"])
        assert logging.getLogger(ROOT).level == logging.WARNING
        live.changes.update(queue_size="many")
        refused = await live.http.post("/admin/reload", json={})
        assert refused.status_code == 400
        assert "--queue-size" in refused.json()["error"]["message"]


async def test_reload_takes_new_keys_and_forgets_old_ones(tmp_path: Path) -> None:
    old, line = new_key("old")
    new, new_line = new_key("new")
    keys = tmp_path / "keys"
    keys.write_text(line)
    async with live_service(tmp_path, talking(), api_keys_file=keys) as live:
        keys.write_text(new_line)
        reload = await live.http.post("/admin/reload", json={}, headers={"Authorization": f"Bearer {old}"})
        assert reload.json()["api_keys"] == "read again"
        statuses = [(await live.chat(headers={"Authorization": f"Bearer {key}"})).status_code for key in (old, new)]
    assert statuses == [401, 200]


async def test_the_model_is_restarted_on_request(tmp_path: Path) -> None:
    async with live_service(tmp_path, talking()) as live:
        assert (await live.http.post("/admin/reload", json={"what": "model"})).json()["state"] == "ready"
        assert [runtime.stopped for runtime in live.engine.runtimes] == [1, 0]
        assert (await live.chat()).status_code == 200


async def test_loading_the_loaded_model_and_an_unknown_one(tmp_path: Path) -> None:
    async with live_service(tmp_path, talking()) as live:
        unknown = await live.http.post("/v1/models/load", json={"model": "no-such-model"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


async def test_shutdown_is_asked_for_gracefully(tmp_path: Path) -> None:
    async with live_service(tmp_path, talking()) as live:
        assert (await live.http.post("/admin/shutdown")).status_code == 202
        assert live.stopping == ["asked"]


@pytest.mark.parametrize("path", ["/admin/shutdown", "/admin/reload", "/admin/cancel/x", "/v1/models/load"])
async def test_strangers_proxies_and_web_pages_cannot_administrate(path: str, tmp_path: Path) -> None:
    async with live_service(tmp_path, talking(), trusted_proxies="127.0.0.1") as live:
        for headers in ({"X-Forwarded-For": "10.0.0.7"}, {"Origin": "http://localhost:3000"}, {"Origin": live.url}):
            assert (await live.http.post(path, json={}, headers=headers)).status_code == 403
    assert live.stopping == []


async def test_with_a_token_file_the_token_is_needed(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    async with live_service(tmp_path, talking(), admin_token_file=tmp_path / "token") as live:
        for given, status in (("", 401), ("Bearer wrong", 401), ("Bearer s3cret", 200)):
            headers = {"Authorization": given} if given else {}
            assert (await live.http.get("/admin/requests", headers=headers)).status_code == status
