"""Two ways to chat: with a running service over HTTP, or with an engine started here. Both yield events."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import httpx2

from qwen_service.chat import ChatRequest, Event, Message, ReasoningDelta, TextDelta
from qwen_service.commands.error_text import answer_text, error_text
from qwen_service.engines.waiting_room import Patience, WaitingRoom
from qwen_service.errors import ServiceError
from qwen_service.models.machine import Machine
from qwen_service.service import Service
from qwen_service.settings import Settings


class TalkFailed(ServiceError):
    """The service that was asked answered with an error, or not at all."""


class Talk(Protocol):
    stopgap: str
    """After open(): what is better than the model, where that is only a stopgap."""

    async def open(self) -> str:
        """Get ready; returns the name of the model."""

    def reply(self, messages: Sequence[Message]) -> AsyncGenerator[Event, None]: ...

    async def close(self) -> None: ...


LOADING = 600.0  # seconds


class LocalTalk:
    """Starts the engine itself, and stops it."""

    def __init__(self, settings: Settings, machine: Machine | None = None) -> None:
        self.stopgap = ""
        self._service = Service(settings, machine=machine)

    async def open(self) -> str:
        await self._service.start()
        model = await self._service.models.obtain(None)
        await model.first_load_done()  # of a card model, too: `ready` refuses to wait for minutes
        await model.ready(WaitingRoom(1, LOADING), Patience(LOADING))
        self.stopgap = model.spec.stopgap
        return model.name

    async def reply(self, messages: Sequence[Message]) -> AsyncGenerator[Event, None]:
        async with aclosing(self._service.chat.stream(ChatRequest(id="chat", messages=tuple(messages)))) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        await self._service.stop()


class RemoteTalk:
    """Any OpenAI-compatible server; `url` with or without /v1."""

    stopgap = ""

    def __init__(self, url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx2.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=httpx2.Timeout(5, read=None)
        )
        self._model = model

    async def open(self) -> str:
        try:
            answer = await self._client.get("/v1/models", timeout=5)
            answer.raise_for_status()
            loaded = {
                entry["id"]: entry.get("stopgap") or ""
                for entry in answer.json()["data"]
                if entry.get("state", "loaded") == "loaded"
            }
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise TalkFailed(
                f"No chat server answers at {self._client.base_url}: {reason}."
                " Start one with `qwen-service serve`, or name another with --url."
            ) from None
        name = self._model or next(iter(loaded), "no model loaded")
        self.stopgap = loaded.get(name, "")
        return name

    async def reply(self, messages: Sequence[Message]) -> AsyncGenerator[Event, None]:
        body = {"messages": [{"role": m.role, "content": m.content} for m in messages], "stream": True}
        if self._model:
            body["model"] = self._model
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != httpx2.codes.OK:
                    raise TalkFailed(answer_text(await answer.aread(), answer.status_code))
                async for line in answer.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        for event in _events(json.loads(line.removeprefix("data: "))):
                            yield event
        except (httpx2.HTTPError, ValueError) as error:
            raise TalkFailed(f"The connection to {self._client.base_url} broke: {error}") from None

    async def close(self) -> None:
        await self._client.aclose()


def _events(chunk: dict[str, Any]) -> list[Event]:
    if "error" in chunk:
        raise TalkFailed(error_text(chunk))
    events: list[Event] = []
    for choice in chunk.get("choices", []):
        if text := choice["delta"].get("reasoning_content"):
            events.append(ReasoningDelta(text))
        if text := choice["delta"].get("content"):
            events.append(TextDelta(text))
    return events
