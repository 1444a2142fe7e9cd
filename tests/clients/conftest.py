"""A live service for clients as they come from the package index: real HTTP, a model that plays its part.

The service runs in a thread of its own, because most of these clients block.
"""

import asyncio
import gc
import json
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass

import pytest
import uvicorn
from fastapi import FastAPI
from openai import OpenAI
from pydantic import BaseModel

from qwen_service.api.server import KEEP_ALIVE
from qwen_service.chat import Sampling
from qwen_service.runtime import Prompt
from tests.case_service import Script, scripted_service

EVENT = {"name": "Science fair", "date": "Friday", "participants": ["Alice", "Bob"]}
STARTUP = 30.0  # seconds


class CalendarEvent(BaseModel):
    """An entry of a calendar."""

    name: str
    date: str
    participants: list[str]


@dataclass
class ObligingModel(Script):
    """Does what the request is about: obeys a schema, calls a tool, reads a tool's result, thinks, or greets."""

    context: int = 20_000

    def reply_to(self, prompt: Prompt, sampling: Sampling) -> str:
        request = prompt.request
        if sampling.json_schema is not None:
            return json.dumps(EVENT)
        if request.messages and request.messages[-1].role == "tool":
            return f"It is {request.messages[-1].content} in Paris."
        if request.tools:
            arguments = EVENT if "date" in json.dumps(request.tools[0].parameters) else {"city": "Paris"}
            return f"<tool_call>\n{json.dumps({'name': request.tools[0].name, 'arguments': arguments})}\n</tool_call>"
        return "<think>\nA greeting.\n</think>\n\nHello there, friend." if request.thinking else "Hello there, friend."


@pytest.fixture
def careless() -> Iterator[None]:
    """For clients that leave their connections to the garbage collector: nothing of them reaches the next test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def served(service: AbstractAsyncContextManager[FastAPI]) -> Iterator[str]:
    """Base address of a service that runs in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready = threading.Event()
    servers: list[_Server] = []

    async def serve() -> None:
        async with service as app:
            config = uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_keep_alive=KEEP_ALIVE
            )
            servers.append(_Server(config, ready))
            await servers[0].serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(STARTUP)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(STARTUP)
        listener.close()


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that knows the models `tiny` and `other`."""
    with served(scripted_service(tmp_path_factory.mktemp("service"), ObligingModel(), {})) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client
