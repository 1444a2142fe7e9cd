import asyncio
import http.client
import json
import logging
import socket
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from qwen_service.errors import StartFailed
from qwen_service.runtimes.axera.channel import Decoded, Encoded, ResetCalled
from qwen_service.runtimes.axera.tokenizer_server import TokenizerServer
from qwen_service.text.tokenizer import LocalTokenizer
from tests.waiting import until

LOG = logging.getLogger("tokenizer")
DEADLINE = 10  # seconds


def render(messages: list[dict[str, Any]], template: str | None) -> str:
    return (template or "") + "".join(message["content"] for message in messages)


@pytest.fixture
async def server(tokenizer: LocalTokenizer) -> AsyncIterator[TokenizerServer]:
    server = TokenizerServer(tokenizer, port=0, log=LOG, render=render)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def raw(server: TokenizerServer, *writes: bytes, end: bool = False) -> bytes:
    """Send what is given, a moment apart, and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for data in writes:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.01)
    if end:
        writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), DEADLINE)
    finally:
        writer.close()
        await writer.wait_closed()


async def call(server: TokenizerServer, path: str, body: Any = None) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE, verify=False) as client:
        answer = await (client.get(path) if body is None else client.post(path, json=body))
    assert answer.status_code == 200
    parsed = answer.json()
    assert isinstance(parsed, dict)
    return parsed


async def test_the_url_has_no_trailing_slash(server: TokenizerServer) -> None:
    assert server.url == f"http://127.0.0.1:{server.port}"


async def test_a_plain_generation_arrives_on_its_channel(server: TokenizerServer) -> None:
    with server.prompt([5, 6, 7]) as channel:
        assert channel.key.isascii()
        assert len(channel.key) < 16
        assert (await call(server, "/encode", {"text": channel.key}))["token_ids"] == [5, 6, 7]
        assert await channel.next() == Encoded()
        assert (await call(server, "/decode", {"token_ids": [1, 2, 3]}))["text"] == ""
        assert await channel.next() == Decoded((1, 2, 3))
        assert (await call(server, "/decode", {"token_ids": []}))["text"] == ""
        assert await channel.next() == Decoded(())


async def test_an_event_is_posted_before_the_program_has_its_answer(server: TokenizerServer) -> None:
    with server.prompt([5]) as channel:
        await call(server, "/encode", {"text": channel.key})
        await call(server, "/decode", {"token_ids": [1]})
        events = [await asyncio.wait_for(channel.next(), 0.5) for _ in range(2)]
    assert events == [Encoded(), Decoded((1,))]


async def test_two_programs_with_uids_share_a_server(server: TokenizerServer) -> None:
    one, two = (await call(server, "/get_uid"))["uid"], (await call(server, "/get_uid"))["uid"]
    assert one != two
    with server.prompt([1, 2, 3], diff=[3]) as first, server.prompt([4]) as second:
        answer = await call(server, "/encode", {"uid": one, "text": first.key, "img_prompt": False, "last_reply": "x"})
        assert (answer["token_ids"], answer["diff"]) == ([1, 2, 3], [3])
        answer = await call(server, "/encode", {"uid": two, "text": second.key})
        assert answer["diff"] == [4]
        await call(server, "/decode", {"uid": two, "token_ids": [20]})
        await call(server, "/decode", {"uid": one, "token_ids": [10]})
        assert [await first.next(), await first.next()] == [Encoded(), Decoded((10,))]
        assert [await second.next(), await second.next()] == [Encoded(), Decoded((20,))]


async def test_a_uid_nobody_has_given_out_is_served(server: TokenizerServer) -> None:
    with server.prompt([1]) as channel:
        await call(server, "/encode", {"uid": "of-an-earlier-server", "text": channel.key})
        await call(server, "/decode", {"uid": "of-an-earlier-server", "token_ids": [9]})
        assert [await channel.next(), await channel.next()] == [Encoded(), Decoded((9,))]
    assert await call(server, "/eos_id?uid=whoever") == {"eos_id": 151645}
    assert await call(server, "/bos_id?uid=whoever") == {"bos_id": -1}


async def test_a_reset_is_answered_with_the_ids_registered_for_it(server: TokenizerServer) -> None:
    with server.reset([8, 9]) as channel:
        answer = await call(server, "/reset", {"uid": "u", "system_prompt": channel.key})
        assert answer["token_ids"] == [8, 9]
        assert await channel.next() == ResetCalled()


async def test_a_reset_nobody_has_asked_for_is_given_some_ids(server: TokenizerServer) -> None:
    for body in ({}, {"uid": "u"}, {"uid": "u", "system_prompt": "You are"}, {"system_prompt": ["x"]}):
        assert (await call(server, "/reset", body))["token_ids"]


async def test_what_comes_after_a_channel_is_closed_is_nobodys(server: TokenizerServer) -> None:
    with server.prompt([1]) as first:
        await call(server, "/encode", {"text": first.key})
    with server.prompt([2]) as second:
        await call(server, "/decode", {"token_ids": [4, 5]})  # the end of the first
        await call(server, "/encode", {"text": second.key})
        assert await second.next() == Encoded()
    assert (await call(server, "/encode", {"text": first.key}))["token_ids"] != [1]


async def test_people_get_the_documented_contract(server: TokenizerServer) -> None:
    encoded = await call(server, "/encode", {"text": "hello world"})
    assert (encoded["tokens"], encoded["length"], encoded["token_ids"]) == ([14990, 1879], 2, [14990, 1879])
    assert await call(server, "/decode", {"tokens": [14990, 1879]}) == {"text": "hello world"}
    assert await call(server, "/decode", {"token_ids": [14990, 1879]}) == {"text": "hello world"}
    messages = [{"role": "user", "content": "hi"}]
    assert await call(server, "/chat_template", {"messages": messages}) == {"prompt": "hi"}
    assert await call(server, "/chat_template", {"messages": messages, "template": ">"}) == {"prompt": ">hi"}
    assert "KeyError" in (await call(server, "/chat_template", {"messages": [{}]}))["error"]
    health = await call(server, "/health")
    assert (health["status"], health["vocab_size"]) == ("ok", 151669)


@pytest.mark.parametrize("path", ["/encode", "/decode", "/reset", "/chat_template"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"text": 5, "tokens": 5, "messages": 5}',
        b'{"text": null, "token_ids": ["a", -1]}',
        b'{"text": "", "token_ids": [-1, 999999999999999999]}',
        b'{"uid": {"a": []}, "text": "a", "token_ids": [1.5]}',
        b'{"text": "\\ud83d", "token_ids": [[1]]}',
        b"[" * 100_000,
    ],
)
async def test_nonsense_gets_an_answer_that_a_program_survives(server: TokenizerServer, path: str, body: bytes) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    answer = await raw(server, head + body)
    status, _, content = answer.partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 200 ")
    parsed = json.loads(content)
    assert isinstance(parsed.get("text", ""), str)
    if path in ("/encode", "/reset"):
        assert parsed["token_ids"]
        assert all(isinstance(id_, int) for id_ in parsed["token_ids"])


async def test_a_request_may_come_in_pieces_cut_anywhere(server: TokenizerServer) -> None:
    body = b'{"tokens": [14990, 1879]}'
    request = b"POST /decode HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    answers = await asyncio.gather(*(raw(server, request[:at], request[at:]) for at in range(1, len(request))))
    assert {answer.partition(b"\r\n\r\n")[2] for answer in answers} == {b'{"text":"hello world"}'}


async def test_http_1_0_chunked_bodies_and_expect_are_understood(server: TokenizerServer) -> None:
    body = b'{"tokens": [14990]}'
    old = await raw(server, b"POST /decode HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    assert old.endswith(b'{"text":"hello"}')
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    chunked = await raw(server, b"POST /decode HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", chunk)
    assert chunked.endswith(b'{"text":"hello"}')
    head = b"POST /decode HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    waited = await raw(server, head, body)
    assert waited.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


async def test_what_is_not_http_is_answered_and_half_a_request_harms_nobody(server: TokenizerServer) -> None:
    assert b"not HTTP" in await raw(server, b"\x16\x03\x01 hello\r\n\r\n")
    assert await raw(server, b"POST /decode HTTP/1.1\r\nContent-Length: 50\r\n\r\n{", end=True) == b""
    assert b"There is no /nowhere here" in await raw(server, b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await call(server, "/eos_id") == {"eos_id": 151645}


def median_of_two_writes(port: int, calls: int) -> float:
    """Seconds per call of a client that keeps its connection where it may, and leaves Nagle's algorithm on."""
    body = b'{"token_ids": [1, 2, 3]}'
    head = b"POST /decode HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection, seconds = None, []
    for _ in range(calls):
        started = time.perf_counter()
        connection = connection or socket.create_connection(("127.0.0.1", port))
        connection.sendall(head)
        connection.sendall(body)
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        response.read()
        if response.will_close:
            connection.close()
            connection = None
        seconds.append(time.perf_counter() - started)
    if connection is not None:
        connection.close()
    return statistics.median(seconds)


async def test_a_keep_alive_client_with_two_writes_does_not_wait_for_acknowledgements(server: TokenizerServer) -> None:
    assert await asyncio.to_thread(median_of_two_writes, server.port, 50) < 0.02  # else it is 0.044 or 0.088


async def test_a_huge_body_is_read_dropped_and_answered(server: TokenizerServer) -> None:
    size = 3 << 20
    head = b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
    answer = await raw(server, head, b" " * size)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["token_ids"]


async def test_a_long_text_of_a_person_does_not_hold_up_a_program(server: TokenizerServer) -> None:
    long_text = asyncio.create_task(call(server, "/encode", {"text": "Some words of a long text. " * 10_000}))
    answers = 0
    with server.prompt([1]) as channel:
        await call(server, "/encode", {"text": channel.key})
        while not long_text.done():
            await call(server, "/decode", {"token_ids": [1, 2, 3]})
            answers += 1
    assert (await long_text)["length"] > 60_000
    assert answers > 5  # about 50; one, if the text were encoded in one go


async def test_a_port_in_use_is_named_and_is_not_tried_again(tokenizer: LocalTokenizer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartFailed) as caught:
            await TokenizerServer(tokenizer, port=port, log=LOG).start()
    assert caught.value.permanent
    assert str(port) in caught.value.message


async def test_a_loop_that_dies_is_started_again_and_generations_go_on(
    server: TokenizerServer, caplog: pytest.LogCaptureFixture
) -> None:
    uid = (await call(server, "/get_uid"))["uid"]
    with server.prompt([5]) as channel:
        await call(server, "/encode", {"uid": uid, "text": channel.key})
        assert server._loop is not None
        server._loop.call_soon_threadsafe(server._loop.stop)  # as close to a crash of the loop as it gets
        await until(lambda: server.restarts)  # a request that the dying loop has accepted is lost with it
        await call(server, "/decode", {"uid": uid, "token_ids": [1]})
        await call(server, "/decode", {"uid": uid, "token_ids": [2]})
        assert [await channel.next() for _ in range(3)] == [Encoded(), Decoded((1,)), Decoded((2,))]
    assert "started again" in caplog.text


async def test_stop_is_idempotent_and_frees_the_port(tokenizer: LocalTokenizer) -> None:
    server = TokenizerServer(tokenizer, port=0, log=LOG)
    await server.start()
    port = server.port
    await server.stop()
    await server.stop()
    assert not server.ready
    again = TokenizerServer(tokenizer, port=port, log=LOG)
    await again.start()
    assert again.ready
    await again.stop()


async def answered(task: "asyncio.Task[dict[str, Any]]") -> bool:
    """Whether an answer that is not held, which takes a millisecond, has come."""
    return bool((await asyncio.wait({task}, timeout=0.1))[0])


def decode(server: TokenizerServer, *ids: int, **more: str) -> "asyncio.Task[dict[str, Any]]":
    return asyncio.create_task(call(server, "/decode", {"token_ids": ids, **more}))


async def test_the_answer_to_the_batch_that_reaches_the_limit_is_held_until_it_is_released(
    server: TokenizerServer,
) -> None:
    with server.prompt([5]) as channel:
        channel.gate.stop_after(4)
        await call(server, "/encode", {"text": channel.key})
        assert (await decode(server, 1, 2, 3))["text"] == ""
        held = decode(server, 4, 5, 6)
        assert [await channel.next() for _ in range(3)] == [
            Encoded(), Decoded((1, 2, 3)), Decoded((4, 5, 6), held=True)
        ]  # fmt: skip
        assert not await answered(held)
        assert channel.gate.held == 6
        assert channel.gate.release()
        assert (await held)["text"] == ""
        assert not channel.gate.release()
        assert (await decode(server, 7, 8, 9))["text"] == ""  # once is enough


async def test_the_next_batch_can_be_held_and_nobody_elses(server: TokenizerServer) -> None:
    with server.prompt([5]) as channel, server.prompt([6]) as other:
        await call(server, "/encode", {"uid": "one", "text": channel.key})
        await call(server, "/encode", {"uid": "two", "text": other.key})
        channel.gate.stop_at_next()
        assert (await decode(server, 1, 2, 3, uid="two"))["text"] == ""
        assert (await call(server, "/decode", {"tokens": [14990, 1879, 0]}))["text"].startswith("hello")
        assert (await decode(server, 1, 2, uid="one"))["text"] == ""  # the reply has ended
        held = decode(server, 1, 2, 3, uid="one")
        assert [await channel.next() for _ in range(3)] == [
            Encoded(), Decoded((1, 2)), Decoded((1, 2, 3), held=True)
        ]  # fmt: skip
        assert not await answered(held)
        assert channel.gate.release()
        await held


async def test_an_answer_that_nobody_releases_is_given_in_time_and_no_longer_counts_as_held(
    server: TokenizerServer,
) -> None:
    with server.prompt([5], longest_hold=0.2) as channel:
        await call(server, "/encode", {"text": channel.key})
        channel.gate.stop_at_next()
        assert (await decode(server, 1, 2, 3))["text"] == ""
        assert not channel.gate.release()


async def test_a_client_that_gives_up_while_it_is_held_is_not_held(server: TokenizerServer) -> None:
    with server.prompt([5]) as channel:
        await call(server, "/encode", {"text": channel.key})
        channel.gate.stop_at_next()
        body = b'{"token_ids": [1, 2, 3]}'
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /decode HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert [await channel.next(), await channel.next()] == [Encoded(), Decoded((1, 2, 3), held=True)]
        writer.close()
        await writer.wait_closed()
        await call(server, "/health")
        assert not channel.gate.release()


async def test_closing_a_channel_releases_what_it_holds(server: TokenizerServer) -> None:
    with server.prompt([5]) as channel:
        await call(server, "/encode", {"text": channel.key})
        channel.gate.stop_at_next()
        held = decode(server, 1, 2, 3)
        assert [await channel.next(), await channel.next()] == [Encoded(), Decoded((1, 2, 3), held=True)]
        assert not held.done()
    assert (await held)["text"] == ""
