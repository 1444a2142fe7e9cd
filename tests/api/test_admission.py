"""Who gets in, tried over real sockets: clients without an address, repeated headers, the admin socket."""

import asyncio
import logging
import re
import socket
import struct
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from qwen_service.api.keys import new_key
from qwen_service.api.request_checks import ADMIN_PATHS
from tests.live_service import Live, live_service

REFUSED = re.compile(r'status="(401|403)"')


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, Path]:
    key, line = new_key("laptop")
    path = tmp_path / "keys"
    path.write_text(line)
    return key, path


def send_and_reset(port: int, request: bytes) -> None:
    """Send a request and reset the connection at once: when the service accepts it, it has no peer address."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(request)


def request_of(method: str, path: str, *headers: str, body: bytes = b"{}") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *headers, "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def operations(live: Live) -> list[tuple[str, str]]:
    """All that the service offers, but what anybody may ask: method and path."""
    found = {(m.upper(), path) for path, methods in live.app.openapi()["paths"].items() for m in methods}
    return sorted((m, path.replace("{request_id}", "x")) for m, path in found if not path.startswith("/health"))


def administration(live: Live) -> list[tuple[str, str]]:
    return [(m, path) for m, path in operations(live) if path.startswith("/admin/") or path in ADMIN_PATHS]


async def admitted(live: Live, key: str) -> list[str]:
    """The lines of the metrics that count an answer which was no refusal, but for those of health and metrics."""
    text = (await live.http.get("/metrics", headers={"Authorization": f"Bearer {key}"})).text
    lines = [line for line in text.splitlines() if line.startswith("qwen_requests_total")]
    return [line for line in lines if "/health" not in line and "/metrics" not in line and not REFUSED.search(line)]


@pytest.mark.parametrize("with_keys", [True, False])
async def test_who_has_no_address_administers_nothing(with_keys: bool, keys: tuple[str, Path], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"api_keys_file": keys[1]} if with_keys else {}
    level = logging.getLogger("qwen_service").level
    async with live_service(tmp_path, **settings) as live:
        for method, path in administration(live):
            for body in (b"{}", b'{"model": "model"}', b'{"level": "debug"}'):
                for _ in range(10):  # in this thread: the service's loop accepts them afterwards
                    send_and_reset(live.port, request_of(method, path, "Host: localhost", body=body))
                await live.until(running=0)
        assert len(administration(live)) >= 7
        assert live.stopping == []
        assert await admitted(live, keys[0]) == []
    assert logging.getLogger("qwen_service").level == level


async def test_500_connections_that_reset_at_random_moments_get_nothing(keys: tuple[str, Path], tmp_path: Path) -> None:
    random = Random(13)
    async with live_service(tmp_path, api_keys_file=keys[1], head_timeout=5) as live:
        for number in range(500):
            method, path = random.choice(operations(live))
            body = (
                b'{"model": "model", "name": "model", "prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}]}'
            )
            request = request_of(method, path, "Host: localhost", body=body)
            send_and_reset(live.port, request[: random.choice([len(request), random.randrange(len(request))])])
            if not number % 20:
                await asyncio.sleep(0)  # lets the service accept some of them
        await live.until(running=0, waiting=0)
        assert await admitted(live, keys[0]) == []
        assert live.engine.answered == []
        assert live.stopping == []


async def test_keys_are_asked_for_before_the_address_is_looked_at(keys: tuple[str, Path], tmp_path: Path) -> None:
    key, path = keys
    async with live_service(tmp_path, api_keys_file=path) as live:
        for method, route in administration(live):
            assert (await live.http.request(method, route, json={})).status_code == 401, route
        allowed = await live.http.get("/admin/requests", headers={"Authorization": f"Bearer {key}"})
        assert allowed.status_code == 200


async def test_the_admin_socket_needs_no_key(keys: tuple[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with live_service(tmp_path, api_keys_file=keys[1], admin_socket=path):
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/admin/requests")).status_code == 200
            assert (await client.get("/admin/requests", headers={"Via": "1.1 proxy"})).status_code == 403
            assert (await client.get("/v1/models")).status_code == 401  # the socket is for administration only


@pytest.mark.parametrize(
    "name", ["Host", "Authorization", "X-Api-Key", "Content-Length", "Transfer-Encoding", "Origin", "X-Request-Id"]
)
async def test_a_second_line_of_a_header_that_is_allowed_once_is_refused(name: str, tmp_path: Path) -> None:
    async with live_service(tmp_path) as live:
        value = {"Content-Length": "2", "Transfer-Encoding": "chunked", "Origin": live.url}.get(name, "localhost")
        lines = [] if name == "Host" else ["Host: localhost"]
        request = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines, *[f"{name}: {value}"] * 2, "", "{}"])
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(request.encode())
        async with asyncio.timeout(30):
            head = await reader.readuntil(b"\r\n")
        writer.close()
    assert b" 400 " in head


async def test_a_proxy_that_adds_a_line_of_its_own_is_believed_and_the_client_is_not(tmp_path: Path) -> None:
    async with live_service(tmp_path, trusted_proxies=["127.0.0.1"]) as live:
        claims = [("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-For", "203.0.113.9")]
        assert (await live.http.get("/admin/requests", headers=claims)).status_code == 403
        assert (await live.http.get("/admin/requests", headers=claims[:1])).status_code == 200
