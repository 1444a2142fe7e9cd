"""A service for the chat page to talk to: the real page routes, and an API that plays what a test tells it to."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from qwen_service.api.pages import ChatPage
from qwen_service.api.server import KEEP_ALIVE
from qwen_service.app import create_app
from qwen_service.settings import Settings


@dataclass(frozen=True)
class Thought:
    text: str


@dataclass(frozen=True)
class Hold:
    """The reply stops here until the test sets `released`, or ends."""

    released: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Refusal:
    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)


class Cut(Exception):
    """The connection breaks here."""


Step = str | Thought | Hold | Cut | dict[str, Any]  # a dict is a raw chunk
OK_HEALTH: dict[str, Any] = {
    "status": "ok",
    "details": {
        "model": {"state": "ready", "name": "qwen3-4b", "runtime": "ax_api", "restarts": 0, "error": None},
        "queue": {"running": 0, "waiting": 0, "size": 16},
        "npu": {
            "cards": [
                {"temperature_celsius": 54, "cmm_used_kib": 5_138_022, "cmm_total_kib": 7_340_032, "npu_percent": 0}
            ],
            "error": None,
        },
        "fallback": None,
        "trouble": None,
    },
}


@dataclass
class ScriptedService:
    replies: list[list[Step] | Refusal] = field(default_factory=lambda: [["Hello ", "there."]])  # the last one repeats
    health: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(OK_HEALTH)))
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "qwen3-4b", "object": "model"}])
    headers: dict[str, str] = field(default_factory=dict)
    api_key: str | None = None
    usage: dict[str, Any] = field(default_factory=lambda: {
        "prompt_tokens": 412, "completion_tokens": 21, "prompt_tokens_details": {"cached_tokens": 380},
    })  # fmt: skip
    finish_reason: str = "stop"
    token_seconds: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)  # a client went away in mid-reply
    recordings: list[bytes] = field(default_factory=list)
    spoken: list[dict[str, Any]] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    health_asked: int = 0
    url: str = ""

    def app(self) -> Starlette:
        page = ChatPage()

        return Starlette(routes=[
            Route("/", page.root),
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/audio/transcriptions", self._transcription, methods=["POST"]),
            Route("/v1/audio/speech", self._speech, methods=["POST"]),
            Route("/openapi.json", self._description),
            *page.routes(),
        ])  # fmt: skip

    async def _health(self, request: Request) -> Response:
        self.health_asked += 1
        return JSONResponse(self.health, status_code=503 if self.health["status"] == "down" else 200)

    async def _description(self, request: Request) -> Response:
        """Of the real service."""
        return self._refusal(request) or JSONResponse(create_app(Settings()).openapi())

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self.models})

    async def _transcription(self, request: Request) -> Response:
        async with request.form() as form:
            file = form["file"]
            assert not isinstance(file, str)
            self.recordings.append(await file.read())
        return JSONResponse({"text": "What is the weather?"})

    async def _speech(self, request: Request) -> Response:
        self.spoken.append(await request.json())

        async def tone() -> AsyncIterator[bytes]:
            for size in (4801, 1, 4798):  # pieces that end within a sample
                yield bytes(size)

        return StreamingResponse(tone(), media_type="audio/pcm")

    async def _chat(self, request: Request) -> Response:
        self.authorizations.append(request.headers.get("authorization"))
        if (refusal := self._refusal(request)) is not None:
            return refusal
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Refusal):
            return _error(reply)
        self.requests.append(await request.json())
        return StreamingResponse(self._stream(reply), media_type="text/event-stream", headers=self.headers)

    def _refusal(self, request: Request) -> Response | None:
        if self.api_key in (None, request.headers.get("authorization", "").removeprefix("Bearer ")):
            return None
        return _error(Refusal(401, "A valid API key is needed."))

    async def _stream(self, reply: list[Step]) -> AsyncIterator[bytes]:
        try:
            for step in reply:
                if isinstance(step, Hold):
                    self.holds.append(step)
                    await asyncio.to_thread(step.released.wait, 60)
                elif isinstance(step, Cut):
                    raise step
                else:
                    yield _sse(_chunk(step))
                    await asyncio.sleep(self.token_seconds)
        except asyncio.CancelledError:
            self.left.set()
            raise
        yield _sse({"choices": [{"index": 0, "delta": {}, "finish_reason": self.finish_reason}]})
        yield _sse({"choices": [], "usage": self.usage, "model": "qwen3-4b"})
        yield b"data: [DONE]\n\n"


def _chunk(step: str | Thought | dict[str, Any]) -> dict[str, Any]:
    if isinstance(step, dict):
        return step
    delta = {"reasoning_content": step.text} if isinstance(step, Thought) else {"content": step}
    return {"model": "qwen3-4b", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def _sse(chunk: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(chunk)}\n\n".encode()


def _error(refusal: Refusal) -> Response:
    error = {"message": refusal.message, "type": "error", "param": None, "code": None}
    return JSONResponse({"error": error}, status_code=refusal.status, headers=refusal.headers)


@contextmanager
def running(service: ScriptedService) -> Iterator[ScriptedService]:
    config = uvicorn.Config(
        service.app(),
        host="127.0.0.1",
        port=0,
        log_level="critical",
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE,
    )
    server = uvicorn.Server(config)
    server.config.load()
    sock = config.bind_socket()
    service.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        for hold in service.holds:
            hold.released.set()
        server.should_exit = server.force_exit = True
        thread.join(timeout=20)
        sock.close()
