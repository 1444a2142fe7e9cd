"""Clients that do not behave, on raw sockets."""

import asyncio
import logging
import socket
from pathlib import Path

import httpx
import pytest

from tests.live_service import Live, ScriptedEngine, live_service


async def raw(live: Live, *pieces: bytes, pause: float = 0) -> bytes:
    """Send, and return all that comes until the service closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause)
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


async def test_a_head_that_never_ends_is_given_up(tmp_path: Path) -> None:
    async with live_service(tmp_path, head_timeout=0.2) as live:
        assert (await raw(live, b"GET / HTTP/1.1\r\nHost: x\r\n")).startswith(b"HTTP/1.1 408 ")


async def test_a_client_that_says_nothing_is_cut_without_an_answer(tmp_path: Path) -> None:
    async with live_service(tmp_path, head_timeout=0.2) as live:
        assert await raw(live) == b""


async def test_an_endless_header_is_cut_before_it_fills_the_memory(tmp_path: Path) -> None:
    async with live_service(tmp_path) as live:
        answer = await raw(live, b"GET / HTTP/1.1\r\nX: ", *[b"x" * 10_000] * 7, pause=0.02)
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_the_second_request_of_a_connection_has_its_own_time(tmp_path: Path) -> None:
    async with live_service(tmp_path, head_timeout=0.4) as live:
        whole = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = await raw(live, whole, whole, whole, b"GET ", pause=0.3)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert b"HTTP/1.1 408 " in answer


async def test_a_slow_body_is_answered_408(tmp_path: Path) -> None:
    async with live_service(tmp_path, body_timeout=0.2) as live:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n"
        answer = await raw(live, head, b"{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"request_timed_out" in answer


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\r\n" * 9 + b"\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
async def test_nonsense_is_refused_and_the_service_lives_on(nonsense: bytes, tmp_path: Path) -> None:
    async with live_service(tmp_path, head_timeout=0.3) as live:
        assert b" 200 " not in await raw(live, nonsense)
        assert (await live.http.get("/health/live")).status_code == 200


async def test_a_reader_that_does_not_read_loses_its_slot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="qwen_service.api.server")
    engine = ScriptedEngine(reply="x" * 4000)
    async with live_service(tmp_path, engine, write_timeout=0.3, context_size=8192) as live:
        with socket.create_connection(("127.0.0.1", live.port)) as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            body = b'{"messages":[{"role":"user","content":"Hi"}],"stream":true,"n":8}'
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            lazy.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await live.until(running=1)
            engine.gate.set()
            await live.until(running=0, waiting=0)
        assert "read nothing" in caplog.text


async def test_the_admin_socket_answers_its_owner_only_and_is_local(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with live_service(tmp_path, admin_socket=path) as live:
        assert path.stat().st_mode & 0o777 == 0o600
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://localhost"
        ) as http:
            assert (await http.post("/admin/log-level", json={"level": "info"})).status_code == 200
        assert (await live.http.get("/health/live")).status_code == 200
