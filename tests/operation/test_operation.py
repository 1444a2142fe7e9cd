"""The parts of operation as a client of the running service sees them."""

import asyncio
import json
import logging
from pathlib import Path

import pytest

from qwen_service.api.keys import new_key
from tests.live_service import ScriptedEngine, live_service


def talking() -> ScriptedEngine:
    engine = ScriptedEngine()
    engine.gate.set()
    return engine


async def test_health_and_metrics_tell_of_the_requests(tmp_path: Path) -> None:
    async with live_service(tmp_path, talking()) as live:
        assert (await live.chat()).json()["choices"][0]["message"]["content"] == "Hello!"
        health = (await live.http.get("/health")).json()
        assert health["status"] == "ok"
        assert health["details"]["model"]["state"] == "ready"
        metrics = (await live.http.get("/metrics")).text
    counted = 'qwen_requests_total{dialect="openai",route="/v1/chat/completions",status="200"} 1.0'
    assert counted in metrics
    assert 'qwen_generated_tokens_total{model="model"} 6.0' in metrics
    assert 'qwen_status{status="ok"} 1.0' in metrics


async def test_a_request_leaves_one_line_with_its_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="qwen_service.access")
    async with live_service(tmp_path, talking()) as live:
        response = await live.chat(headers={"X-Request-Id": "job-1"}, max_tokens=2)
    assert response.headers["x-request-id"] == "job-1"
    (line,) = [record for record in caplog.records if getattr(record, "request_id", "") == "job-1"]
    fields = line.__dict__["fields"]
    assert (fields["completion_tokens"], fields["finish"], fields["model"]) == (2, "length", "model")
    assert fields["ttft"] <= fields["duration"]


async def test_a_client_that_leaves_is_logged_with_what_it_got(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="qwen_service.access")
    async with live_service(tmp_path) as live:
        asking = asyncio.create_task(live.chat(headers={"X-Request-Id": "job-2"}))
        await live.until(running=1)
        asking.cancel()
        await live.until(running=0)
        live.engine.gate.set()
        usage = (await live.chat()).json()["usage"]
    (line,) = [record for record in caplog.records if getattr(record, "request_id", "") == "job-2"]
    assert line.getMessage().endswith(" 499")
    fields = line.__dict__["fields"]
    assert (fields["finish"], fields["prompt_tokens"]) == ("cut", usage["prompt_tokens"])


async def test_keys_are_asked_for_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="qwen_service.access")
    key, line = new_key("laptop")
    (tmp_path / "keys").write_text(line)
    async with live_service(tmp_path, talking(), api_keys_file=tmp_path / "keys") as live:
        refused = await live.chat()
        answered = await live.chat(headers={"Authorization": f"Bearer {key}"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert answered.status_code == 200
    assert key not in caplog.text
    assert [r.__dict__["fields"]["client"] for r in caplog.records if "fields" in r.__dict__][-1] == "laptop"


async def test_foreign_hosts_origins_and_large_bodies_get_errors_in_the_dialects_shape(tmp_path: Path) -> None:
    async with live_service(tmp_path, talking(), max_body_bytes=1024) as live:
        host = await live.http.get("/v1/models", headers={"Host": "evil.example"})
        origin = await live.http.get("/v1/models", headers={"Origin": "https://evil.example"})
        large = await live.chat("x" * 2000)
        allowed = await live.http.get("/v1/models", headers={"Origin": "http://localhost:3000"})
    assert (host.status_code, host.json()["error"]["code"]) == (403, "forbidden")
    assert (origin.status_code, origin.json()["error"]["code"]) == (403, "forbidden")
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    assert allowed.headers["access-control-allow-origin"] == "http://localhost:3000"


async def test_the_openapi_description_is_served(tmp_path: Path) -> None:
    async with live_service(tmp_path, talking()) as live:
        paths = json.loads((await live.http.get("/openapi.json")).text)["paths"]
    assert {"/v1/chat/completions", "/health", "/metrics"} <= paths.keys()


def as_client(address: str, **more: str) -> dict[str, str]:
    return {"X-Forwarded-For": address, **more}


async def test_clients_take_turns_and_background_work_waits(tmp_path: Path) -> None:
    async with live_service(tmp_path, trusted_proxies="127.0.0.1") as live:
        asking = []
        for number, (text, headers) in enumerate(
            [
                ("a1", as_client("10.0.0.1")),
                ("a2", as_client("10.0.0.1")),
                ("title", as_client("10.0.0.3", **{"X-Priority": "background"})),
                ("a3", as_client("10.0.0.1")),
                ("b1", as_client("10.0.0.2")),
            ]
        ):
            asking.append(asyncio.create_task(live.chat(text, headers=headers, max_tokens=1)))
            await live.until(running=1, waiting=number)
        live.engine.gate.set()
        assert {(await task).status_code for task in asking} == {200}
    assert live.engine.answered == ["a1", "b1", "a2", "a3", "title"]


async def test_a_full_line_costs_the_greedy_client_a_place_not_the_newcomer(tmp_path: Path) -> None:
    async with live_service(tmp_path, trusted_proxies="127.0.0.1", queue_size=2) as live:
        greedy = []
        for number in range(3):
            greedy.append(asyncio.create_task(live.chat(f"a{number}", headers=as_client("10.0.0.1"))))
            await live.until(running=1, waiting=number)
        newcomer = asyncio.create_task(live.chat("b", headers=as_client("10.0.0.2")))
        refused = await greedy[2]
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        live.engine.gate.set()
        assert [(await task).status_code for task in (*greedy[:2], newcomer)] == [200, 200, 200]


@pytest.mark.parametrize("wanted", [False, True])
async def test_prompts_are_logged_only_on_request(
    wanted: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="qwen_service")
    async with live_service(tmp_path, talking(), log_prompts=wanted) as live:
        await live.chat("a private matter")
    assert ("a private matter" in caplog.text) is wanted
