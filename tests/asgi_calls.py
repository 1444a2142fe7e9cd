"""Calls an ASGI app directly, without a server: the smallest client there is."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from qwen_service.api.asgi import ASGIApp, Message, Receive, Scope, Send
from qwen_service.errors import ServiceError


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def call(
    app: ASGIApp,
    path: str = "/v1/models",
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: Iterable[bytes] = (),
    client: tuple[str, int] | None = ("127.0.0.1", 5000),
    hang: bool = False,
    stay: bool = False,
) -> Answer:
    """`hang`: the last piece of the body never comes. `stay`: the client waits for the whole answer."""
    answer = Answer()
    pieces = list(body)
    named = {"host": "localhost"} | {name.lower(): value for name, value in (headers or {}).items()}
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "client": client,
    }

    async def receive() -> Message:
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces) or hang}
        if hang or stay:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body it got."""
    body = b""
    if any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]):
        more = True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def error_by_name(scope: Scope, error: ServiceError) -> ASGIApp:
    """The class of the error as the body, 400 for all."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": type(error).__name__.encode()})

    return respond
