"""Clients that do not behave, on raw sockets."""

import asyncio
import logging
import socket
import threading
from pathlib import Path

import httpx
import pytest
import uvicorn

from qwen_service.api.asgi import Receive, Scope, Send
from qwen_service.api.server import ClientConnections, ConnectionLimits, Server, guarded
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
    async with live_service(tmp_path, head_timeout=1) as live:
        whole = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = await raw(live, whole, whole, whole, b"GET ", pause=0.5)
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


async def test_stalled_heads_take_no_request_of_anybody_else(tmp_path: Path) -> None:
    async with live_service(tmp_path, max_connections=2) as live:
        stalled = [await asyncio.open_connection("127.0.0.1", live.port) for _ in range(300)]
        for _, writer in stalled:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc")
        assert (await live.http.get("/health/live")).status_code == 200
        live.engine.gate.set()
        assert (await live.chat()).status_code == 200
        for _, writer in stalled:
            writer.close()


async def test_requests_in_progress_are_bounded_and_health_has_its_place(tmp_path: Path) -> None:
    async with live_service(tmp_path, max_connections=2) as live:
        running = [asyncio.create_task(live.chat()) for _ in range(2)]
        await live.until(running=1, waiting=1)
        refused = await live.chat()
        assert refused.status_code == 429
        assert "max_connections" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) > 0
        assert (await live.http.get("/health")).status_code == 200
        live.engine.gate.set()
        assert [(await task).status_code for task in running] == [200, 200]
        assert (await live.chat()).status_code == 200


def test_the_connections_of_one_client_are_bounded() -> None:
    clients = ClientConnections(2, lambda host: host != "127.0.0.1")
    assert [clients.enter("10.0.0.1") for _ in range(3)] == [True, True, False]
    assert clients.enter("10.0.0.2")
    assert all(clients.enter("127.0.0.1") for _ in range(9))
    clients.leave("10.0.0.1")
    assert clients.enter("10.0.0.1")


def test_an_ipv6_client_is_its_network() -> None:
    clients = ClientConnections(2, lambda _: True)
    assert [clients.enter(f"2001:db8::{number}") for number in (1, 2, 3)] == [True, True, False]
    assert clients.enter("2001:db8:0:1::1")


async def test_one_connection_too_many_is_answered_503_and_closed(tmp_path: Path) -> None:
    async with live_service(tmp_path) as live:
        limited = guarded(ConnectionLimits(), per_client=1)
        limited.clients = ClientConnections(1, lambda _: True)  # loopback, the only address here, is not bound
        config = uvicorn.Config(live.app, http=limited, log_config=None, lifespan="off")
        config.load()
        loop = asyncio.get_running_loop()
        state = uvicorn.server.ServerState()
        server = await loop.create_server(
            lambda: limited(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        first = await asyncio.open_connection("127.0.0.1", port)
        second = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(30):
            answer = await second[0].read()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert f"content-length: {len(body)}".encode() in head
        for _, writer in (first, second):
            writer.close()
        server.close()


async def test_the_admin_socket_of_a_service_that_runs_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with live_service(tmp_path, admin_socket=path):
        (tmp_path / "other").mkdir()
        async with live_service(tmp_path / "other", admin_socket=path):
            pass
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/health/live")).status_code == 200


async def slow_to_clean_up(scope: Scope, receive: Receive, send: Send) -> None:
    """Streams until it is cancelled, then needs half a second, and says so."""
    if scope["type"] == "lifespan":
        for end in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{end}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun\n", "more_body": True})
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.5)
        await send({"type": "http.response.body", "body": b"cut\n", "more_body": False})


def test_a_reply_that_is_cut_may_still_tell_its_client_so() -> None:
    """Although all else has stopped before: the end of the event loop would cancel it a second time."""
    config = uvicorn.Config(
        slow_to_clean_up, http=guarded(ConnectionLimits()), log_config=None, timeout_graceful_shutdown=0
    )
    server = Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with httpx.stream("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=30) as reply:
            lines = reply.iter_lines()
            assert next(lines) == "begun"
            server.should_exit = True
            assert list(lines) == ["cut"]
        thread.join(30)
    assert not thread.is_alive()
