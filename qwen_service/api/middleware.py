"""The middleware: one small ASGI class for each duty, with no work per streamed chunk.

middleware_stack.py has their order, and adds targets.PlainPath and targets.HeadAsGet. A refusal is a ServiceError answered by
`error_response(scope, error)`, which the app supplies, so that each dialect gets its own shape.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType

from qwen_service.api.asgi import SESSION_HEADERS, ASGIApp, ErrorResponse, Message, Receive, Scope, Send, header, joined
from qwen_service.errors import Forbidden, QueueFull, RequestTimedOut, RequestTooLarge, ServiceError
from qwen_service.request_record import CLIENT_LEFT, RequestRecord, current_record

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RequestContext:
    """Gives the request its id (the client's own if it is well-formed) and its record, and passes the record on at the end.

    An unexpected exception is logged under that id and answered in the dialect's shape.
    """

    def __init__(
        self,
        app: ASGIApp,
        finished: Callable[[RequestRecord], None],
        client: Callable[[Scope], str],
        error_response: ErrorResponse,
    ) -> None:
        self.app, self.finished, self.client, self.error_response = app, finished, client, error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        record = self._new_record(scope)
        ids = [(b"x-request-id", record.id.encode())]
        if record.dialect == "anthropic":
            ids.append((b"request-id", record.id.encode()))

        def send_with_id(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *ids]
            return send(message)

        token = current_record.set(record)
        try:
            await self._run(scope, receive, send_with_id, record)
        finally:
            current_record.reset(token)
            record.route = getattr(scope.get("route"), "path", "")
            record.close()
            self.finished(record)
        return None

    async def _run(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception:
            if record.status != CLIENT_LEFT:
                raise  # an answer has begun: cutting the connection shows the client that it is not complete
            log.exception("A request failed by a defect of the service")
            error = ServiceError(
                f"The service failed by a defect of its own; its log has the details of request {record.id}."
            )
            await self.error_response(scope, error)(scope, receive, send)

    def _new_record(self, scope: Scope) -> RequestRecord:
        given = header(scope, b"x-request-id")
        request_id = given.decode() if given and REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        path = scope["path"]
        record = RequestRecord(request_id, scope["method"], path, dialect_of(scope), self.client(scope))
        record.priority = (header(scope, b"x-priority") or b"")[:16].decode("latin-1").strip().lower()
        named = filter(None, (joined(scope, name) for name in SESSION_HEADERS))
        record.session = next(named, b"")[:256].decode("latin-1")
        scope.setdefault("state", {})["record"] = record
        return record


class RequestLimit:
    """Bounds the number of requests in progress. `always_open` paths (health) pass and do not count."""

    def __init__(self, app: ASGIApp, most: int, always_open: frozenset[str], error_response: ErrorResponse) -> None:
        self.app, self.most, self.always_open, self.error_response = app, most, always_open, error_response
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.always_open:
            return await self.app(scope, receive, send)
        if self.running >= self.most:
            error = QueueFull(f"{self.running} requests are in progress already (max_connections); try again later.")
            return await self.error_response(scope, error)(scope, receive, send)
        self.running += 1
        try:
            return await self.app(scope, receive, send)
        finally:
            self.running -= 1


class CrossOrigin:
    """CORS by an allow-list. In addition, a request of a foreign web page is refused before it makes the engine work.

    An origin is written as browsers do, `https://host:port`; `*` in it stands for any run of name or port
    characters. The service's own page (origin host = Host header) is always allowed.
    """

    RESPONSE_HEADERS = (
        b"x-request-id, request-id, x-served-by, x-context-trimmed-messages, x-ignored-parameters, retry-after"
    )

    def __init__(self, app: ASGIApp, origins: Iterable[str], error_response: ErrorResponse) -> None:
        self.app, self.error_response = app, error_response
        patterns = (re.escape(origin).replace(r"\*", r"[A-Za-z0-9.-]*") for origin in origins)
        self.allowed = re.compile("|".join(patterns) or r"(?!)")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = header(scope, b"origin") if scope["type"] == "http" else None
        if origin is None:
            await self.app(scope, receive, send)
        elif not self._allows(origin, header(scope, b"host")):
            shown = origin[:80].decode("ascii", "replace")
            error = Forbidden(
                f"Web pages of {shown} may not use this service. `cors_origins: {shown!r}` in config.yaml allows them."
            )
            await self.error_response(scope, error)(scope, receive, send)
        elif scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method"):
            await self._answer_preflight(scope, origin, send)
        else:
            expose = (b"access-control-expose-headers", self.RESPONSE_HEADERS)
            await self.app(scope, receive, _with_headers(send, *_allowance(origin), expose))

    def _allows(self, origin: bytes, host: bytes | None) -> bool:
        own = origin.partition(b"://")[2] == host
        return own or self.allowed.fullmatch(origin.decode("latin-1")) is not None

    async def _answer_preflight(self, scope: Scope, origin: bytes, send: Send) -> None:
        """Allow an allowed page all methods and headers: OpenAI's client sends ten headers of its own."""
        wanted = joined(scope, b"access-control-request-headers") or b"content-type"
        headers = [
            *_allowance(origin),
            (b"access-control-allow-methods", b"GET, POST, DELETE, HEAD"),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"600"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


class Checks:
    """Runs the checks (request_checks.py) in order; the first objection answers the request."""

    def __init__(
        self, app: ASGIApp, checks: Iterable[Callable[[Scope], ServiceError | None]], error_response: ErrorResponse
    ) -> None:
        self.app, self.checks, self.error_response = app, tuple(checks), error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http":
            for check in self.checks:
                if (error := check(scope)) is not None:
                    app = self.error_response(scope, error)
                    break
        await app(scope, receive, send)


class BodyLimit:
    """Reads the whole body, bounded in bytes and time, before the app is called. The app gets it in one piece.

    `larger`: path -> its own bound in bytes.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        timeout: float,
        error_response: ErrorResponse,
        larger: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.app, self.error_response, self.timeout = app, error_response, timeout
        self.max_bytes, self.larger = max_bytes, larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (announced := _announced_bytes(scope)):
            return await self.app(scope, receive, send)
        try:
            async with asyncio.timeout(self.timeout):
                body = await self._read(announced, receive, self.larger.get(scope["path"], self.max_bytes))
        except TimeoutError:
            error = RequestTimedOut(f"The request's body did not arrive within {self.timeout:g} s.")
            send = _with_headers(send, (b"connection", b"close"))
            return await self.error_response(scope, error)(scope, receive, send)
        except RequestTooLarge as error:
            return await self.error_response(scope, error)(scope, receive, send)
        if body is not None:
            await self.app(scope, _replayed(body, receive), send)
        return None

    async def _read(self, announced: int, receive: Receive, most: int) -> bytes | None:
        """Read the body; None: the client left before its end."""
        _check_size(announced, most)
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            _check_size(len(body), most)
            more = message.get("more_body", False)
        return bytes(body)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise RequestTooLarge(f"The request's body is too large: at most {most} bytes are allowed.")


def _announced_bytes(scope: Scope) -> int:
    """The announced size: 0 without a body, 1 for a body of unknown size."""
    if header(scope, b"transfer-encoding"):
        return 1
    length = header(scope, b"content-length") or b""
    return int(length) if length.isdigit() else 0


def _replayed(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_body_first() -> Message:
        return pending.pop() if pending else await receive()

    return receive_body_first


def _allowance(origin: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return (b"access-control-allow-origin", origin), (b"vary", b"Origin")


def _with_headers(send: Send, *headers: tuple[bytes, bytes]) -> Send:
    """Wrap `send` with a plain function instead of a coroutine, so that a streamed chunk costs one plain call."""

    def send_with_headers(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        return send(message)

    return send_with_headers


def dialect_of(scope: Scope) -> str:
    path = scope["path"]
    if path.startswith("/v1/messages"):
        return "anthropic"
    if path == "/v1/models" and joined(scope, b"anthropic-version"):
        return "anthropic"
    if path.startswith("/v1/responses"):
        return "responses"
    if path.startswith("/v1/"):
        return "openai"
    return "ollama" if path.startswith("/api/") else ""
