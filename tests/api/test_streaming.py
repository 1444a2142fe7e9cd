import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import PlainTextResponse, Response

from qwen_service.api.reply import Dialect
from qwen_service.api.streaming import Events, StreamReply, WholeReply, merged
from qwen_service.chat import Event, Started, TextDelta
from qwen_service.errors import Died, Loading, ServiceError
from qwen_service.request_record import RequestRecord, current_record
from tests.live_service import ScriptedEngine, live_service

PING = b": ping\n\n"
SOON = 0.02  # seconds: stands for the 2 s and the 10 s


class Client:
    """The other end of one ASGI call: notes what it is sent, leaves when told to."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self._arrived = asyncio.Event()

    async def call(self, response: Response) -> None:
        """As the app does, which answers errors that nothing was sent before."""
        app = ExceptionMiddleware(response, handlers={ServiceError: lambda _, error: error_response(error)})
        await app({"type": "http"}, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self._arrived.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._arrived.clear()
                await self._arrived.wait()

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode("latin-1") for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def complete(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)


async def encode(events: Events) -> AsyncGenerator[bytes, None]:
    async for index, event in events:
        if isinstance(event, TextDelta):
            yield f"{index}:{event.text} ".encode()
    yield b"DONE"


def error_response(error: ServiceError) -> Response:
    return PlainTextResponse(error.message, 503)


def reply(events: AsyncGenerator[Event, None], *, ping: bytes = PING, **times: float) -> StreamReply[tuple[int, Event]]:
    dialect = Dialect(error_response, "text/event-stream", lambda error: f"ERROR {error.message}".encode(), ping)
    return StreamReply(merged([events]), encode, dialect, lambda: {"X-Served-By": "m"}, **times)


class Script:
    """Events one by one, each when `go_on` is set; remembers that it was closed."""

    def __init__(self, *steps: Event | Exception) -> None:
        self.steps = steps
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.closed = asyncio.Event()

    async def events(self, after: Event | None = None) -> AsyncGenerator[Event, None]:
        """`after` comes at once, before the others."""
        self.begun.set()
        try:
            if after is not None:
                yield after
            for step in self.steps:
                await self.go_on.wait()
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.closed.set()

    def at_once(self) -> AsyncGenerator[Event, None]:
        self.go_on.set()
        return self.events()


async def test_a_stream_is_headers_chunks_and_a_clean_end() -> None:
    client = Client()
    await client.call(reply(Script(Started("m"), TextDelta("a"), TextDelta("b")).at_once()))
    assert client.status == 200
    assert client.headers == {
        "content-type": "text/event-stream",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
        "x-served-by": "m",
    }
    assert client.body == b"0:a 0:b DONE"
    assert client.complete


async def test_an_error_before_the_first_chunk_has_a_status_of_its_own() -> None:
    client = Client()
    await client.call(reply(Script(Started("m"), Loading("not yet")).at_once()))
    assert (client.status, client.body) == (503, b"not yet")


async def test_an_error_after_the_headers_is_told_in_the_stream_which_ends_there() -> None:
    client = Client()
    await client.call(reply(Script(TextDelta("a"), Died("killed")).at_once()))
    assert (client.status, client.body) == (200, b"0:a ERROR killed")
    assert client.complete


async def test_a_defect_of_ours_before_the_first_chunk_is_the_servers_500() -> None:
    with pytest.raises(ZeroDivisionError):
        await Client().call(reply(Script(ZeroDivisionError()).at_once()))


async def test_a_defect_of_ours_in_the_stream_is_no_clean_end_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    await client.call(reply(Script(TextDelta("a"), ZeroDivisionError()).at_once()))
    assert client.body.startswith(b"0:a ERROR The service failed by a defect")
    assert "ZeroDivisionError" in caplog.text


async def test_headers_go_out_and_pings_follow_while_the_first_chunk_is_awaited() -> None:
    client, script = Client(), Script(TextDelta("late"))
    call = asyncio.create_task(client.call(reply(script.events(), status_within=SOON, ping_every=SOON)))
    await client.until(lambda: client.body.count(PING) >= 3)
    assert client.status == 200
    script.go_on.set()
    await call
    assert client.body.replace(PING, b"") == b"0:late DONE"


async def test_an_error_after_early_headers_is_told_in_the_stream() -> None:
    client, script = Client(), Script(Died("killed"))
    call = asyncio.create_task(client.call(reply(script.events(), status_within=SOON, ping_every=SOON)))
    await client.until(lambda: PING in client.body)
    script.go_on.set()
    await call
    assert client.body.replace(PING, b"") == b"ERROR killed"
    assert client.complete


async def test_pings_fill_a_silence_in_the_middle() -> None:
    client, script = Client(), Script(TextDelta("b"))

    call = asyncio.create_task(
        client.call(reply(script.events(after=TextDelta("a")), status_within=SOON, ping_every=SOON))
    )
    await client.until(lambda: PING in client.body)
    assert client.body.startswith(b"0:a ")
    script.go_on.set()
    await call
    assert client.body.replace(PING, b"") == b"0:a 0:b DONE"


async def test_a_format_without_comments_gets_early_headers_and_no_pings() -> None:
    client, script = Client(), Script(TextDelta("late"))
    call = asyncio.create_task(client.call(reply(script.events(), ping=b"", status_within=SOON, ping_every=SOON)))
    await client.until(lambda: client.status == 200)
    await asyncio.sleep(5 * SOON)
    assert len(client.sent) == 1
    script.go_on.set()
    await call
    assert client.body == b"0:late DONE"


async def test_a_request_that_waits_longer_than_work_may_keeps_the_status_of_its_refusal() -> None:
    client, script = Client(), Script(Loading("not yet"))
    call = asyncio.create_task(client.call(reply(script.events(), headers_after=SOON, ping_every=SOON)))
    await asyncio.sleep(5 * SOON)
    assert client.sent == []
    script.go_on.set()
    await call
    assert (client.status, client.body) == (503, b"not yet")


async def test_a_request_that_is_worked_on_gets_its_headers_before_the_first_chunk() -> None:
    client, script = Client(), Script(TextDelta("late"))

    call = asyncio.create_task(
        client.call(reply(script.events(after=Started("m")), headers_after=SOON, ping_every=SOON))
    )
    await client.until(lambda: PING in client.body)
    assert client.headers["x-served-by"] == "m"
    script.go_on.set()
    await call
    assert client.body.replace(PING, b"") == b"0:late DONE"


async def test_an_error_in_the_stream_is_recorded_with_the_status_that_it_would_have_had() -> None:
    record = RequestRecord("1", "POST", "/", "openai")
    token = current_record.set(record)
    try:
        await Client().call(reply(Script(TextDelta("a"), Died("killed")).at_once()))
    finally:
        current_record.reset(token)
    assert (record.status, record.error) == (503, "Died")


@pytest.mark.parametrize("when", ["before the first chunk", "between chunks"])
async def test_a_client_that_leaves_a_stream_ends_the_work(when: str) -> None:
    client, script = Client(), Script(TextDelta("b"))

    async def events() -> AsyncGenerator[Event, None]:
        if when == "between chunks":
            yield TextDelta("a")
        async with aclosing(script.events()) as rest:
            async for event in rest:
                yield event

    call = asyncio.create_task(client.call(reply(events())))
    await client.until(lambda: client.body == b"0:a ") if when == "between chunks" else await script.begun.wait()
    client.left.set()
    await asyncio.wait_for(call, 20)
    assert script.closed.is_set()
    assert not client.complete


async def whole(script: Script) -> Response:
    async with aclosing(script.events()) as events:
        return PlainTextResponse("".join([event.text async for event in events if isinstance(event, TextDelta)]))


async def test_a_whole_reply_is_computed_and_sent() -> None:
    client, script = Client(), Script(TextDelta("a"), TextDelta("b"))
    script.go_on.set()
    await client.call(WholeReply(lambda: whole(script)))
    assert (client.status, client.body) == (200, b"ab")


async def test_an_error_of_a_whole_reply_has_its_status() -> None:
    client, script = Client(), Script(TextDelta("a"), Died("killed"))
    script.go_on.set()
    await client.call(WholeReply(lambda: whole(script)))
    assert (client.status, client.body) == (503, b"killed")


async def test_a_client_that_leaves_a_whole_reply_ends_the_work() -> None:
    client, script = Client(), Script(TextDelta("a"))
    call = asyncio.create_task(client.call(WholeReply(lambda: whole(script))))
    await script.begun.wait()
    client.left.set()
    await asyncio.wait_for(call, 20)
    assert script.closed.is_set()
    assert client.sent == []


@pytest.mark.parametrize("begun", [True, False])
async def test_a_server_whose_patience_ends_tells_the_client_of_a_stream(begun: bool) -> None:
    client, script = Client(), Script(TextDelta("b"))

    call = asyncio.create_task(client.call(reply(script.events(after=TextDelta("a") if begun else None))))
    await client.until(lambda: client.body == b"0:a ") if begun else await script.begun.wait()
    call.cancel()
    await call
    assert script.closed.is_set()
    assert client.complete
    stopping = b"0:a ERROR the service is stopping" if begun else b"the service is stopping"
    assert (client.status, client.body) == (200 if begun else 503, stopping)


async def test_a_server_whose_patience_ends_tells_the_client_of_a_whole_reply() -> None:
    client, script = Client(), Script(TextDelta("a"))
    call = asyncio.create_task(client.call(WholeReply(lambda: whole(script))))
    await script.begun.wait()
    call.cancel()
    await call
    assert script.closed.is_set()
    assert (client.status, client.body) == (503, b"the service is stopping")


async def test_work_that_fails_after_its_client_has_left_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    client, begun = Client(), asyncio.Event()

    async def fails_to_clean_up() -> AsyncGenerator[Event, None]:
        begun.set()
        try:
            await asyncio.Event().wait()
            yield TextDelta("never")
        finally:
            raise ZeroDivisionError

    call = asyncio.create_task(client.call(reply(fails_to_clean_up())))
    await begun.wait()
    client.left.set()
    await call
    assert "ZeroDivisionError" in caplog.text


async def test_several_replies_are_merged_as_they_come() -> None:
    first, second = Script(TextDelta("a")), Script(TextDelta("b"), TextDelta("c"))
    events = merged([first.events(), second.at_once()])
    assert [await anext(events), await anext(events)] == [(1, TextDelta("b")), (1, TextDelta("c"))]
    first.go_on.set()
    assert [event async for event in events] == [(0, TextDelta("a"))]


async def test_one_of_several_replies_that_fails_ends_all() -> None:
    fails, waits = Script(TextDelta("a"), Died("killed")), Script(TextDelta("b"))
    events = merged([fails.at_once(), waits.events()])
    assert await anext(events) == (0, TextDelta("a"))
    with pytest.raises(Died):
        await anext(events)
    assert waits.closed.is_set()


@pytest.mark.parametrize("count", [1, 3])
async def test_closing_merged_replies_closes_each(count: int) -> None:
    scripts = [Script(*[TextDelta("a")] * 500) for _ in range(count)]
    events = merged([script.at_once() for script in scripts])
    await anext(events)
    await events.aclose()
    assert all(script.closed.is_set() for script in scripts)


def request_bytes(stream: bool) -> bytes:
    body = b'{"messages": [{"role": "user", "content": "Hi"}], "stream": %b}' % (b"true" if stream else b"false")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_frees_the_slot_of_a_running_reply_and_the_place_in_the_line(
    stream: bool, tmp_path: Path
) -> None:
    async with live_service(tmp_path, ScriptedEngine()) as live:  # its gate is shut: no reply ever comes
        running, waiting = (socket.create_connection(("127.0.0.1", live.port)) for _ in range(2))
        with running, waiting:
            running.sendall(request_bytes(stream))
            await live.until(running=1, waiting=0)
            waiting.sendall(request_bytes(stream))
            await live.until(running=1, waiting=1)
            waiting.close()
            await live.until(running=1, waiting=0)
            running.close()
            await live.until(running=0, waiting=0)
        live.engine.gate.set()
        assert (await live.chat()).json()["choices"][0]["message"]["content"] == "Hello!"
