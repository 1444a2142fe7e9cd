"""Clients of a soak: they ask at once again, come back when refused, and check that each reply is their own."""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2

PATIENCE = 120.0  # seconds: longer than the service lets anybody wait, and a reply
LONGEST_PAUSE = 2.0  # seconds until a refused client comes back: soon, so that the line stays full
REFUSALS = frozenset({429, 503})
OPENAI, OLLAMA = "/v1/chat/completions", "/api/chat"


class Clients:
    """`outcomes` counts what became of each request; whatever is no answer and no proper refusal is in `faults`."""

    def __init__(self, url: str, model: str, count: int) -> None:
        limits = httpx2.Limits(max_connections=2 * count, max_keepalive_connections=count // 2)
        self._http = httpx2.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits)
        self._model = model
        self._rng = random.Random(count)
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.kinds: tuple[Callable[[], Awaitable[None]], ...] = (
            self._whole, self._stream, self._ollama, self._talk, self._leave_the_line, self._leave_the_reply,
        )  # fmt: skip

    async def ask_for_ever(self) -> None:
        while True:
            kind = self._rng.choice(self.kinds)
            try:
                await kind()
            except (httpx2.HTTPError, ValueError, LookupError) as error:
                self._fault(f"{kind.__name__}: {error!r}")
                await asyncio.sleep(LONGEST_PAUSE)

    async def close(self) -> None:
        await self._http.aclose()

    async def _whole(self) -> None:
        await self._answered(self._question())

    async def _stream(self) -> None:
        question = self._question(stream=True)
        async with self._asked(question) as response:
            events = [line[6:] async for line in response.aiter_lines() if line.startswith("data: ")]
        if events and events[-1] == "[DONE]":
            deltas = [choice["delta"] for event in events[:-1] for choice in json.loads(event)["choices"]]
            self._check(question, "".join(delta.get("content") or "" for delta in deltas))
        elif events:
            self._fault(f"stream without an end: {events[-1]}")

    async def _ollama(self) -> None:
        question = self._question(stream=self._rng.random() < 0.5) | {"options": {"num_predict": 40}}
        async with self._asked(question, OLLAMA) as response:
            lines = [json.loads(line) async for line in response.aiter_lines()]
        if lines and lines[-1].get("done"):
            self._check(question, "".join(line["message"]["content"] for line in lines))
        elif lines:
            self._fault(f"Ollama's stream without an end: {lines[-1]}")

    async def _talk(self) -> None:
        question = self._question()
        for _ in range(3):
            reply = await self._answered(question)
            if not reply:
                return
            again = {"role": "user", "content": f"{self._number(question)}, and then?"}
            question["messages"] += [{"role": "assistant", "content": reply}, again]

    async def _leave_the_line(self) -> None:
        task = asyncio.ensure_future(self._http.post(OPENAI, json=self._question(), headers=self._address()))
        try:
            done, _ = await asyncio.wait({task}, timeout=self._rng.random() * 20)
        finally:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.outcomes["ended before its client left" if done else "left the line"] += 1

    async def _leave_the_reply(self) -> None:
        async with self._asked(self._question(stream=True)) as response:
            events = 0
            async for line in response.aiter_lines():
                events += line.startswith("data: ")
                if events > 4:
                    self.outcomes["left the reply"] += 1
                    self.outcomes["answered"] -= 1
                    return

    async def _answered(self, question: dict[str, Any]) -> str:
        async with self._asked(question) as response:
            body = await response.aread()
        if response.status_code != 200:
            return ""
        reply = str(json.loads(body)["choices"][0]["message"]["content"])
        self._check(question, reply)
        return reply

    @asynccontextmanager
    async def _asked(self, question: dict[str, Any], path: str = OPENAI) -> AsyncIterator[httpx2.Response]:
        """The response; it has no lines when it is a refusal, after the pause that a polite client makes."""
        async with self._http.stream("POST", path, json=question, headers=self._address()) as response:
            if response.status_code == 200:
                self.outcomes["answered"] += 1
                yield response
                return
            text = (await response.aread()).decode()
        if response.status_code in REFUSALS:
            self.outcomes[f"refused {response.status_code}"] += 1
        else:
            self._fault(f"{response.status_code}: {text}")
        await asyncio.sleep(min(float(response.headers.get("retry-after", 1)), LONGEST_PAUSE))
        yield httpx2.Response(response.status_code)

    def _question(self, *, stream: bool = False) -> dict[str, Any]:
        """The engine repeats what is new to it of the prompt: there stands a number that only this client knows."""
        number = self._rng.randrange(10**6, 10**7)
        words = " ".join(self._rng.choices(("river", "engine", "lamp", "seven", "Käse", "夜", "🙂"), k=8))
        messages = [{"role": "system", "content": f"Clerk {number}."}, {"role": "user", "content": f"{number} {words}"}]
        return {"model": self._model, "messages": messages, "max_tokens": 40, "stream": stream}

    def _address(self) -> dict[str, str]:
        """Many clients, not one that asks a lot: more than are remembered, few enough to come back."""
        return {"X-Forwarded-For": f"10.0.{self._rng.randrange(8)}.{self._rng.randrange(256)}"}

    def _check(self, question: dict[str, Any], reply: str) -> None:
        number = self._number(question)
        if set(re.findall(r"\d{7}", reply)) != {number}:
            self._fault(f"cross-talk: asked with {number}, answered {reply!r}")

    def _number(self, question: dict[str, Any]) -> str:
        return str(question["messages"][0]["content"]).removeprefix("Clerk ").removesuffix(".")

    def _fault(self, text: str) -> None:
        self.outcomes["faults"] += 1
        if len(self.faults) < 100:
            self.faults.append(text)
