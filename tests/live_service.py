"""The whole service behind a real uvicorn on a free port, with an engine that plays a script."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import uvicorn
from fastapi import FastAPI

from qwen_service.api.server import KEEP_ALIVE, ConnectionLimits, Server, guarded
from qwen_service.app import create_app
from qwen_service.chat import Sampling
from qwen_service.config import load_settings
from qwen_service.engine import BringUp, Engine, ModelText
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.runtime import Limits, LoadProgress, Piece, Prefill, Prompt
from qwen_service.settings import Settings
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import ChatTemplate
from tests.fakes import LetterTokenizer, ScriptedRuntime

PLAIN = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


@dataclass
class ScriptedEngine:
    """Says `reply` a letter a piece. `gate` holds it back before each letter until it is set."""

    reply: str = "Hello!"
    slots: int = 1
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    runtimes: list[ScriptedRuntime] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)  # last messages, or prompts, in the order of their turns

    def loaders(self, model: InstalledModel, settings: Settings, machine: Machine) -> dict[str, BringUp]:
        return {model.name: self.bring_up}

    async def bring_up(self, progress: LoadProgress) -> Engine:
        runtime = ScriptedRuntime(self.speak, limits=Limits(context=4096, prompt=4000, slots=self.slots))
        self.runtimes.append(runtime)
        text = ModelText(LetterTokenizer(), ChatTemplate(PLAIN, {}), OutputFormat())
        return Engine(runtime, runtime.limits, text)

    async def speak(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        asked = prompt.request
        self.answered.append(asked.messages[-1].content if asked.messages else str(asked.prompt))
        yield Prefill(len(prompt.token_ids), 0)
        for number, letter in enumerate(self.reply, 1):
            await self.gate.wait()
            last: Literal["stop", "length"] | None
            last = "length" if number == sampling.max_tokens else "stop" if number == len(self.reply) else None
            yield Piece(letter, 1, (ord(letter),), finish_reason=last)
            if last:
                return


@dataclass
class Live:
    url: str
    port: int
    http: httpx.AsyncClient
    engine: ScriptedEngine
    app: FastAPI
    changes: dict[str, Any]  # of settings, found by the next /admin/reload
    stopping: list[str]

    async def chat(self, text: str = "Hi", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        return await self.http.post("/v1/chat/completions", json={"messages": messages, **body}, headers=headers)

    async def until(self, **queue: int) -> None:
        """Return when /health shows these numbers of `running` and `waiting`."""
        async with asyncio.timeout(30):
            while True:
                health = await self.http.get("/health")
                shown = health.json()["details"]["queue"]
                if health.status_code == 200 and queue.items() <= shown.items():
                    return


class _Server(Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def live_service(folder: Path, engine: ScriptedEngine | None = None, **settings: Any) -> AsyncIterator[Live]:
    engine = engine or ScriptedEngine()
    changes: dict[str, Any] = {}
    (folder / "model.gguf").touch()
    defaults = {"model_path": folder / "model.gguf", "state_dir": folder / "state", "models_dir": folder / "models"}
    settings = defaults | settings
    loaded = load_settings(settings)
    stopping: list[str] = []
    app = create_app(
        loaded,
        loaders=engine.loaders,
        read_settings=lambda: load_settings(settings | changes),
        shut_down=lambda: stopping.append("asked"),
    )
    async with listening(app, loaded) as (port, http):
        live = Live(f"http://127.0.0.1:{port}", port, http, engine, app, changes, stopping)
        try:
            await live.until(running=0)
            yield live
        finally:
            engine.gate.set()


@asynccontextmanager
async def listening(app: FastAPI, settings: Settings) -> AsyncIterator[tuple[int, httpx.AsyncClient]]:
    """`app` behind uvicorn on a free port, and a client for it."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    limits = ConnectionLimits(settings.head_timeout, settings.write_timeout)
    http_class = guarded(limits, settings.max_connections_per_client, settings.trusted_proxies)
    config = uvicorn.Config(
        app,
        http=http_class,
        log_config=None,
        access_log=False,
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
    )
    server = _Server(config, settings.admin_socket)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, verify=False) as http:  # no TLS here
        try:
            yield port, http
        finally:
            server.should_exit = True
            await running
