"""The client against a scripted server on a real unix socket."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qwen_service.runtimes.local_http import HttpError, LocalHttp

DEADLINE = 20.0
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class ScriptedServer:
    """Answers each request with these parts, one write each; a number is a pause in seconds, -1 a broken connection.

    An event is waited for.
    """

    def __init__(self) -> None:
        self.script: list[bytes | float | asyncio.Event] = []
        self.requests: list[bytes] = []
        self.connections = 0
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.connections += 1
            while not reader.at_eof():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                self.requests.append(head + await reader.readexactly(length))
                await self._play(writer)
        except asyncio.IncompleteReadError:
            pass
        except ConnectionError:  # the client left in the middle: some tests want that
            pass
        finally:
            writer.transport.abort()
            self.left.set()

    async def _play(self, writer: asyncio.StreamWriter) -> None:
        for part in self.script:
            if isinstance(part, bytes):
                writer.write(part)
                await writer.drain()
            elif isinstance(part, asyncio.Event):
                await part.wait()
            elif part >= 0:
                await asyncio.sleep(part)
            else:
                writer.transport.abort()


@pytest.fixture
def http(tmp_path: Path) -> Iterator[LocalHttp]:
    client = LocalHttp(tmp_path / "s.sock")
    yield client
    client.close()


@pytest.fixture
async def server(tmp_path: Path, http: LocalHttp) -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    async with await asyncio.start_unix_server(scripted.serve, tmp_path / "s.sock"):
        yield scripted
        http.close()
        if scripted.requests:
            async with asyncio.timeout(DEADLINE):
                await scripted.left.wait()


async def collect(http: LocalHttp, stall_timeout: float = DEADLINE) -> list[bytes]:
    with closing(await http.events("/completion", {"n": 1}, stall_timeout)) as stream:
        events = []
        while new := await stream.read():
            events += new
        return events


async def test_a_request_is_sent_and_its_json_answer_read(server: ScriptedServer, http: LocalHttp) -> None:
    server.script = [b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"a"', b": 12}"[:5]]
    assert await http.post("/tokenize", {"x": "é"}, DEADLINE) == {"a": 12}
    assert server.requests[0].startswith(b"POST /tokenize HTTP/1.1\r\n")
    assert server.requests[0].endswith('\r\n\r\n{"x":"é"}'.encode())


async def test_an_event_stream_cut_into_single_bytes_is_read(server: ScriptedServer, http: LocalHttp) -> None:
    answer = CHUNKED + chunk(b"data: one\n\nda") + chunk(b"ta: two\n\n") + b"0\r\n\r\n"
    server.script = [bytes([byte]) for byte in answer]
    assert await collect(http) == [b"one", b"two"]


async def test_many_events_in_one_packet_are_all_read(server: ScriptedServer, http: LocalHttp) -> None:
    server.script = [CHUNKED + b"".join(chunk(b"data: %d\n\n" % n) for n in range(100)) + b"0\r\n\r\n"]
    assert await collect(http) == [b"%d" % n for n in range(100)]


@pytest.mark.parametrize("call", [collect, lambda http: http.get("/health", DEADLINE)])
async def test_another_status_is_an_error_with_its_body(
    server: ScriptedServer, http: LocalHttp, call: Callable[[LocalHttp], Awaitable[object]]
) -> None:
    server.script = [b"HTTP/1.1 503 Busy\r\nContent-Length: 7\r\n\r\nloa", b"ding"]
    with pytest.raises(HttpError) as caught:
        await call(http)
    assert (caught.value.status, caught.value.body) == (503, b"loading")


async def test_a_connection_that_breaks_in_mid_stream_is_never_a_clean_end(
    server: ScriptedServer, http: LocalHttp
) -> None:
    server.script = [CHUNKED + chunk(b"data: one\n\n"), 0.05, -1.0]
    with pytest.raises(ConnectionResetError):
        await collect(http)


async def test_a_refusal_without_a_body_is_no_empty_stream(server: ScriptedServer, http: LocalHttp) -> None:
    server.script = [b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"]
    with pytest.raises(HttpError) as caught:
        await collect(http)
    assert (caught.value.status, caught.value.body) == (503, b"")


async def test_an_empty_answer_is_none(server: ScriptedServer, http: LocalHttp) -> None:
    server.script = [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]
    assert await http.get("/api/stop", DEADLINE) is None


async def test_a_port_is_talked_to_like_a_socket_and_no_connection_is_kept_unless_wanted() -> None:
    server = ScriptedServer()
    server.script = [ANSWER]
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        http = LocalHttp(listening.sockets[0].getsockname()[1], keep=False)
        for _ in range(2):
            assert await http.post("/api/reset", {}, DEADLINE) == {}
        async with asyncio.timeout(DEADLINE):
            await server.left.wait()
    assert server.connections == 2
    assert b"\r\nConnection: close\r\n" in server.requests[0]


async def test_a_port_where_nobody_listens_is_an_error(unused_tcp_port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        await LocalHttp(unused_tcp_port).get("/health", DEADLINE)


async def test_a_stream_of_no_stated_length_ends_with_its_connection(server: ScriptedServer, http: LocalHttp) -> None:
    server.script = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"data: one\n\n", 0.05, -1.0]
    assert await collect(http) == [b"one"]


async def test_something_that_is_not_http_is_an_error(server: ScriptedServer, http: LocalHttp) -> None:
    server.script = [b"220 mail.example.org ESMTP\r\n"]
    with pytest.raises(ConnectionAbortedError):
        await http.get("/health", DEADLINE)


async def test_nobody_listening_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await LocalHttp(tmp_path / "none.sock").get("/health", DEADLINE)


async def test_pings_do_not_hide_that_the_engine_stalls(server: ScriptedServer, http: LocalHttp) -> None:
    server.script = [CHUNKED + chunk(b"data: one\n\n"), *((chunk(b":\n\n"), 0.05) * 200)]
    with pytest.raises(TimeoutError):
        await collect(http, stall_timeout=0.3)


async def test_events_that_keep_coming_postpone_the_timeout(server: ScriptedServer, http: LocalHttp) -> None:
    server.script = [CHUNKED, *((chunk(b"data: x\n\n"), 0.1) * 8), b"0\r\n\r\n"]
    assert len(await collect(http, stall_timeout=0.6)) == 8


async def test_a_reader_that_is_slow_does_not_count_as_a_stalled_engine(
    server: ScriptedServer, http: LocalHttp
) -> None:
    read = asyncio.Event()
    server.script = [CHUNKED + chunk(b"data: one\n\n"), read, chunk(b"data: two\n\n") + b"0\r\n\r\n"]
    with closing(await http.events("/completion", {}, 0.5)) as stream:
        assert await stream.read() == [b"one"]
        read.set()
        await asyncio.sleep(0.8)
        assert await stream.read() == [b"two"]


async def test_closing_the_stream_closes_the_connection(server: ScriptedServer, http: LocalHttp) -> None:
    server.script = [CHUNKED + chunk(b"data: one\n\n")]
    with closing(await http.events("/completion", {}, DEADLINE)) as stream:
        await stream.read()
    async with asyncio.timeout(DEADLINE):
        await server.left.wait()


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=5, max=100\r\n\r\n{}"


async def test_a_connection_is_used_again_for_the_next_request(server: ScriptedServer, http: LocalHttp) -> None:
    server.script = [ANSWER]
    for _ in range(3):
        await http.post("/tokenize", {}, DEADLINE)
    server.script = [CHUNKED + chunk(b"data: one\n\n") + b"0\r\n\r\n"]
    assert await collect(http) == [b"one"]
    assert (len(server.requests), server.connections) == (4, 1)


async def test_requests_at_the_same_time_have_connections_of_their_own(server: ScriptedServer, http: LocalHttp) -> None:
    server.script = [0.05, ANSWER]
    await asyncio.gather(*(http.get("/slots", DEADLINE) for _ in range(3)))
    assert server.connections == 3


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        ANSWER.replace(b"Keep-Alive: timeout=5, max=100\r\n", b""),
        CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + chunk(b"{}") + b"0\r\n\r\n",
    ],
)
async def test_a_connection_that_the_server_does_not_offer_to_keep_is_not_used_again(
    server: ScriptedServer, http: LocalHttp, answer: bytes
) -> None:
    server.script = [answer]
    for _ in range(2):
        await http.post("/tokenize", {}, DEADLINE)
    assert server.connections == 2


async def test_the_connection_of_a_stream_is_not_used_again(server: ScriptedServer, http: LocalHttp) -> None:
    read = asyncio.Event()
    server.script = [CHUNKED + chunk(b"data: one\n\n"), read, chunk(b"data: two\n\n") + b"0\r\n\r\n"]
    with closing(await http.events("/completion", {}, DEADLINE)) as stream:
        assert await stream.read() == [b"one"]
    read.set()
    assert await collect(http) == [b"one", b"two"]
    assert server.connections == 2


async def test_a_burst_that_overflows_the_backlog_of_a_slow_server_is_served(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "slow.sock"))
        listener.listen(1)
        http = LocalHttp(tmp_path / "slow.sock")
        burst = asyncio.gather(*(http.get("/health", DEADLINE) for _ in range(10)))
        await asyncio.sleep(0.1)
        server = ScriptedServer()
        server.script = [ANSWER]
        async with await asyncio.start_unix_server(server.serve, sock=listener):
            assert await burst == [{}] * 10
            http.close()
            await server.left.wait()
            await asyncio.sleep(0)
