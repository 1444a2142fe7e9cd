"""Requests as clients with a somewhat wrong base URL send them, HEAD, Allow, and encoded bodies, over real sockets."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from qwen_service.api.keys import new_key
from qwen_service.api.targets import METHODS
from tests.live_service import Live, live_service

pytestmark = pytest.mark.asyncio(loop_scope="module")
ADMINISTRATION = ["/admin/shutdown", "/admin/log-level", "/v1/models/load", "/api/delete"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live_service(tmp_path_factory.mktemp("live")) as live:
        live.engine.gate.set()
        yield live


async def sent(live: Live, method: str, path: str, **more: Any) -> httpx.Response:
    """To exactly this path: httpx would join it to the base URL."""
    return await live.http.send(httpx.Request(method, live.url + path, **more))


@pytest.mark.parametrize("path", ["//v1/chat/completions", "/v1//chat/completions", "///v1///chat//completions"])
async def test_doubled_slashes_count_as_one(path: str, live: Live) -> None:
    answer = await sent(live, "POST", path, json={"messages": [{"role": "user", "content": "Hi"}]})
    assert answer.json()["choices"][0]["message"]["content"] == "Hello!"


@pytest.mark.parametrize("slashes", ["//", "/////"])
@pytest.mark.parametrize("path", ADMINISTRATION)
async def test_doubled_slashes_open_no_door(path: str, slashes: str, tmp_path: Path) -> None:
    key, line = new_key("laptop")
    (tmp_path / "keys").write_text(line)
    method = "DELETE" if path == "/api/delete" else "POST"
    doubled = path.replace("/", slashes)
    async with live_service(tmp_path, api_keys_file=tmp_path / "keys") as live:
        assert (await sent(live, method, doubled, json={})).status_code == 401
        headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": "203.0.113.9"}
        assert (await sent(live, method, doubled, json={}, headers=headers)).status_code == 403
        assert live.stopping == []


@pytest.mark.parametrize(
    ("method", "path", "advice"),
    [
        ("POST", "/v1/v1/chat/completions", "Take /v1 from the end"),
        ("POST", "/v1/v1/messages", "Take /v1 from the end"),
        ("GET", "/v1/v1/models", "Take /v1 from the end"),
        ("POST", "/api/api/chat", "Take /api from the end"),
        ("POST", "/v1/api/chat", "Take /v1 from the end"),
        ("POST", "/api/v1/chat/completions", "Take /api from the end"),
        ("POST", "/chat/completions", "Add /v1 to the end"),
        ("GET", "/models", "Add /v1 to the end"),
        ("GET", "/tags", "Add /api to the end"),
        ("POST", "/generate", "Add /api to the end"),
    ],
)
async def test_a_404_says_what_is_wrong_with_the_base_url(method: str, path: str, advice: str, live: Live) -> None:
    answer = await sent(live, method, path, json={})
    assert answer.status_code == 404
    assert advice in answer.text
    assert path in answer.text


async def test_a_404_of_anything_else_names_the_reference(live: Live) -> None:
    for path in ("/nothing", "/v1/nothing", "/v1/v1/nothing", "/api/nothing"):
        answer = await sent(live, "POST", path, json={})
        assert (answer.status_code, "/docs" in answer.text, "base URL" in answer.text) == (404, True, False)


async def test_head_works_where_get_does_and_has_no_body(live: Live) -> None:
    reading = [path for path, methods in live.app.openapi()["paths"].items() if "get" in methods and "{" not in path]
    assert {"/health", "/metrics", "/v1/models", "/api/tags", "/api/version", "/admin/requests"} <= set(reading)
    for path in [*reading, "/", "/chat", "/docs", "/openapi.json", "/v1/models/model"]:
        got, headed = await sent(live, "GET", path), await sent(live, "HEAD", path)
        assert (headed.status_code, headed.content) == (got.status_code, b""), path
        assert headed.headers.get("content-type") == got.headers.get("content-type"), path
        assert "content-length" in headed.headers, path


async def test_head_is_recorded_as_head_with_its_route(live: Live) -> None:
    await sent(live, "HEAD", "/api/version")
    metrics = (await live.http.get("/metrics")).text
    assert 'route="/api/version"' in metrics


async def test_head_administers_nothing(live: Live) -> None:
    for path in ADMINISTRATION:
        assert (await sent(live, "HEAD", path)).status_code in (404, 405), path
    assert (await sent(live, "HEAD", "/admin/requests", headers={"Via": "1.1 proxy"})).status_code == 403
    assert live.stopping == []


async def test_allow_names_what_is_allowed_and_nothing_else(live: Live) -> None:
    paths = [
        "/v1/models/load",
        "/v1/chat/completions",
        "/api/tags",
        "/api/delete",
        "/chat",
        "/web/x.js",
        "/",
        "/api/blobs/x",
    ]
    for path in paths:
        answers = {method: await sent(live, method, path, content=b"{}") for method in [*METHODS, "HEAD"]}
        refused = {method: answer for method, answer in answers.items() if answer.status_code == 405}
        assert refused, path
        for method, answer in refused.items():
            allowed = set(answer.headers["allow"].split(", "))
            assert allowed == set(answers) - set(refused), (method, path)


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/api/tags"])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x-gzip", "identity, gzip", "GZIP", "\xff"])
async def test_an_encoded_body_is_refused_with_the_reason(route: str, coding: str, live: Live) -> None:
    body = gzip.compress(b"{}") if "gzip" in coding else zlib.compress(b"{}")
    headers = {"Content-Type": "application/json", "Content-Encoding": coding.encode("latin-1")}
    answer = await sent(live, "POST", route, content=body, headers=headers)
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "identity"
    assert "Content-Encoding" in answer.text
    assert "not compressed" in answer.text


async def test_lines_of_content_encoding_are_one_list(live: Live) -> None:
    headers = [("Content-Encoding", "identity"), ("Content-Encoding", "gzip"), ("Content-Type", "application/json")]
    assert (await sent(live, "POST", "/v1/chat/completions", content=b"{}", headers=headers)).status_code == 415


@pytest.mark.parametrize("coding", ["identity", "Identity", "", "identity, identity"])
async def test_identity_is_no_encoding(coding: str, live: Live) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    headers = {"Content-Encoding": coding}
    assert (await sent(live, "POST", "/v1/chat/completions", json=body, headers=headers)).status_code == 200


async def test_a_transfer_coding_other_than_chunked_is_refused(live: Live) -> None:
    body = gzip.compress(b"{}")
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    async with asyncio.timeout(30):
        status = await reader.readline()
    writer.close()
    assert b" 415 " in status
