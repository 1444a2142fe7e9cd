import asyncio
import time

import pytest

from qwen_service.api.asgi import ASGIApp, Message, Receive, Scope, Send
from qwen_service.api.middleware import BodyLimit, Checks, CrossOrigin, RequestContext
from qwen_service.api.request_checks import AllowedHosts, HeadLimit
from qwen_service.request_record import RequestRecord, current_record
from tests.asgi_calls import call, echo, error_by_name


def in_context(app: ASGIApp) -> tuple[RequestContext, list[RequestRecord]]:
    records: list[RequestRecord] = []
    return RequestContext(app, records.append, lambda scope: str(scope["client"][0]), error_by_name), records


async def test_a_decent_request_id_of_the_client_is_kept() -> None:
    app, records = in_context(echo)
    answer = await call(app, headers={"X-Request-Id": "job-7.a_B"})
    assert answer.headers["x-request-id"] == "job-7.a_B" == records[0].id


@pytest.mark.parametrize("given", ["", "a b", "-x", "x" * 65, "a\tb", "é", "{}"])
async def test_any_other_request_id_is_replaced(given: str) -> None:
    app, _ = in_context(echo)
    request_id = (await call(app, headers={"X-Request-Id": given})).headers["x-request-id"]
    assert request_id != given
    assert len(request_id) == 16


async def test_the_record_tells_how_the_request_ended() -> None:
    app, records = in_context(echo)
    await call(app, "/api/tags", client=("10.0.0.9", 1))
    (record,) = records
    assert (record.status, record.dialect, record.client, record.method) == (200, "ollama", "10.0.0.9", "GET")
    assert 0 < record.duration < 5


async def test_the_record_is_at_hand_during_the_request_and_gone_after_it() -> None:
    seen: list[RequestRecord | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_record.get())
        await echo(scope, receive, send)

    context, records = in_context(app)
    await call(context)
    assert seen == records
    assert current_record.get() is None


async def test_a_defect_is_logged_under_its_id_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("of all things")

    app, records = in_context(fails)
    answer = await call(app, headers={"X-Request-Id": "r7"})
    assert (answer.body, answer.headers["x-request-id"], records[0].status) == (b"ServiceError", "r7", 400)
    assert "of all things" in caplog.text


async def test_a_defect_after_the_answer_has_begun_cuts_the_connection() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("too late")

    app, records = in_context(fails)
    with pytest.raises(ValueError, match="too late"):
        await call(app)
    assert len(records) == 1


async def test_a_request_without_an_answer_is_recorded_as_client_left() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    app, records = in_context(silent)
    await call(app)
    assert records[0].status == 499


async def test_a_streamed_chunk_costs_no_coroutine_of_ours() -> None:
    chunk: Message = {"type": "http.response.body", "body": b"x", "more_body": True}
    awaited: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        awaited.append(send(chunk))

    def send(message: Message) -> asyncio.Future[None]:
        sent.append(asyncio.get_running_loop().create_future())
        sent[-1].set_result(None)
        return sent[-1]

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    sent: list[asyncio.Future[None]] = []
    context, _ = in_context(CrossOrigin(app, ["http://a"], error_by_name))
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"origin", b"http://a")], "client": ("c", 1)}
    await context(scope, receive, send)
    assert awaited == [sent[1]]  # the server's own awaitable, handed through


@pytest.mark.parametrize("origin", ["https://chat.example.org", "http://localhost:5173", "http://localhost"])
async def test_an_allowed_origin_is_named_in_the_answer(origin: str) -> None:
    app = CrossOrigin(echo, ["https://chat.example.org", "http://localhost", "http://localhost:*"], error_by_name)
    answer = await call(app, headers={"Origin": origin})
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://chat.example.org.evil.example",
        "http://localhost:1/x",
        "null",
        "http://x:80",
        "",
    ],
)
async def test_a_foreign_origin_reaches_nothing(origin: str) -> None:
    app = CrossOrigin(echo, ["https://chat.example.org", "http://localhost:*"], error_by_name)
    answer = await call(app, method="POST", headers={"Origin": origin})
    assert answer.body == b"Forbidden"
    assert "access-control-allow-origin" not in answer.headers


async def test_the_services_own_page_is_never_foreign() -> None:
    app = CrossOrigin(echo, [], error_by_name)
    own = {"Host": "pi.local:8080", "Origin": "http://pi.local:8080"}
    assert (await call(app, headers=own)).status == 200
    assert (await call(app, headers={**own, "Origin": "http://pi.local:9090"})).body == b"Forbidden"


async def test_a_preflight_is_answered_before_any_key_is_asked_for() -> None:
    app = CrossOrigin(echo, ["http://localhost:*"], error_by_name)
    wanted = "authorization,x-stainless-os"
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    answer = await call(app, method="OPTIONS", headers={**asked, "Access-Control-Request-Headers": wanted})
    assert answer.status == 204
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == wanted


async def test_a_body_reaches_the_app_in_one_piece() -> None:
    app = BodyLimit(echo, 10, 5, error_by_name)
    answer = await call(app, method="POST", headers={"Content-Length": "10"}, body=[b"01234", b"56789"])
    assert answer.body == b"0123456789"


@pytest.mark.parametrize("headers", [{"Content-Length": "11"}, {"Transfer-Encoding": "chunked"}])
async def test_too_large_a_body_is_refused_announced_or_streamed(headers: dict[str, str]) -> None:
    app = BodyLimit(echo, 10, 5, error_by_name)
    answer = await call(app, method="POST", headers=headers, body=[b"01234", b"56789", b"x"])
    assert answer.body == b"RequestTooLarge"


async def test_an_announced_excess_is_refused_before_it_is_read() -> None:
    app = BodyLimit(echo, 10, 5, error_by_name)
    answer = await call(app, method="POST", headers={"Content-Length": "9" * 30}, hang=True)
    assert answer.body == b"RequestTooLarge"


async def test_a_body_that_never_ends_is_given_up_and_the_connection_closed() -> None:
    app = BodyLimit(echo, 10, 0.05, error_by_name)
    answer = await call(app, method="POST", headers={"Content-Length": "9"}, body=[b"01"], hang=True)
    assert answer.body == b"RequestTimedOut"
    assert answer.headers["connection"] == "close"


async def test_a_client_that_leaves_during_its_body_gets_no_answer() -> None:
    app = BodyLimit(echo, 10, 5, error_by_name)
    assert (await call(app, method="POST", headers={"Content-Length": "9"})).status == 0


async def test_after_the_body_the_app_still_sees_the_client_leave() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    await call(BodyLimit(app, 10, 5, error_by_name), method="POST", headers={"Content-Length": "1"}, body=[b"x"])
    assert seen == ["http.request", "http.disconnect"]


async def test_the_first_check_that_objects_answers() -> None:
    app = Checks(echo, [AllowedHosts([]), HeadLimit(1, 10)], error_by_name)
    assert (await call(app, headers={"Host": "evil.example"})).body == b"Forbidden"
    assert (await call(app, headers={"a": "b"})).body == b"RequestTooLarge"


def all_of_it(app: ASGIApp) -> ASGIApp:
    app = BodyLimit(app, 1000, 5, error_by_name)
    app = Checks(app, [AllowedHosts([]), HeadLimit(100, 65536)], error_by_name)
    return in_context(CrossOrigin(app, [], error_by_name))[0]


@pytest.mark.no_cover
async def test_all_middleware_together_costs_little_beside_an_empty_application() -> None:
    async def cost(app: ASGIApp) -> float:
        batches = []
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(50):
                await call(app, method="POST", headers=usual, body=[b"{}"])
            batches.append((time.perf_counter() - start) / 50)
        return min(batches)

    usual = {"Content-Length": "2", **dict.fromkeys(("accept", "user-agent", "accept-encoding", "x"), "value" * 3)}
    assert await cost(all_of_it(echo)) < 17 * await cost(echo)  # usually 1.7 times
