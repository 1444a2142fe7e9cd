"""Clients that check what they get: an answer that is theirs, or an error that is one. Anything else is a Violation."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from itertools import permutations
from typing import Any

import httpx

WORDS = ("zebra", "violin", "harbour", "cactus", "planet", "button", "ladder", "turtle", "window", "pepper")
HEAD = "You are a parrot that says again what it has heard, word by word, and adds nothing. "
PATIENCE = 90.0  # seconds: longer than every limit of the service together
REFUSALS = frozenset({429, 502, 503, 504})  # the only errors that a good request may get


class Violation(Exception):
    """A promise of docs/reliability.md was broken."""


class Clients:
    """`echo`: the engine repeats what it is asked. Otherwise it is a real one, whose replies must be learned.

    `head`: what all conversations begin with, so that there is something to prefill while nobody waits.
    """

    def __init__(self, http: httpx.AsyncClient, rng: random.Random, *, echo: bool, head: str = HEAD) -> None:
        self._http, self._rng, self._echo = http, rng, echo
        self._head = {"role": "system", "content": head}
        self.kinds: tuple[Callable[[], Awaitable[str]], ...] = (self.whole, self.stream, self.ollama, self.leaver)
        self.kinds += (self.talk if echo else self.long,)
        self._marks = {word: word for word in WORDS}  # what only a reply to this word contains

    async def learn(self) -> None:
        """Note what a real engine replies to each word while nothing disturbs it: no other word may ever get that."""
        for word in () if self._echo else WORDS:
            path, body = self._question(word)
            reply = (await self._http.post(path, json=body)).json()["choices"][0]["text"]
            self._marks[word] = reply[: len(reply) // 3]  # four tokens
        if any(one in other for one, other in permutations(self._marks.values(), 2)):
            raise Violation(f"replies to these words are too much alike to see cross-talk: {self._marks}")

    async def any(self) -> str:
        """One request of any kind; its outcome in a word."""
        kind = self._rng.choice(self.kinds)
        try:
            async with asyncio.timeout(PATIENCE):
                return f"{kind.__name__}: {await kind()}"
        except TimeoutError:
            raise Violation(f"{kind.__name__}: no end within {PATIENCE:g} s") from None
        except httpx.TransportError as error:
            raise Violation(f"{kind.__name__}: the connection broke: {error!r}") from error

    async def whole(self) -> str:
        word = self._rng.choice(WORDS)
        path, body = self._question(word)
        response = await self._http.post(path, json=body)
        if response.status_code != 200:
            return self._refusal(response.status_code, response.text)
        choice = response.json()["choices"][0]
        self._check_own(word, choice["message"]["content"] if "message" in choice else choice["text"])
        return f"200 {self._reason(choice['finish_reason'])}"

    async def stream(self) -> str:
        word = self._rng.choice(WORDS)
        path, body = self._question(word)
        async with self._http.stream("POST", path, json={**body, "stream": True}) as response:
            text = (await response.aread()).decode()
        if response.status_code != 200:
            return self._refusal(response.status_code, text)
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        if not events:
            raise Violation(f"stream: 200 and no event: {text!r}")
        if events[-1] != "[DONE]":
            return self._in_stream_error(events[-1])
        choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
        self._check_own(word, "".join(c["delta"].get("content") or "" if "delta" in c else c["text"] for c in choices))
        return f"200 {self._reason(choices[-1]['finish_reason'])}"

    async def long(self) -> str:
        """A long reply: two of them outgrow a context of 512 together."""
        word = self._rng.choice(WORDS)
        path, body = self._question(word)
        response = await self._http.post(path, json={**body, "max_tokens": LONG})
        if response.status_code != 200:
            return self._refusal(response.status_code, response.text)
        reply = response.json()
        (choice,) = reply["choices"]
        self._check_own(word, choice["text"])
        if choice["finish_reason"] == "length" and reply["usage"]["completion_tokens"] != LONG:
            raise Violation(f"loss: {reply['usage']} after {word!r}: {choice['text']!r}")
        return f"200 {self._reason(choice['finish_reason'])}"

    async def ollama(self) -> str:
        word = self._rng.choice(WORDS)
        body = {
            "model": "model",
            "messages": [self._head, {"role": "user", "content": f"{word} {word}"}],
            "options": LIMIT,
        }
        async with self._http.stream("POST", "/api/chat", json=body) as response:
            text = (await response.aread()).decode()
        if response.status_code != 200:
            return self._refusal(response.status_code, text)
        lines = [json.loads(line) for line in text.splitlines()]
        if not lines[-1].get("done"):
            return self._in_stream_error(text.splitlines()[-1])
        if self._echo:
            self._check_own(word, "".join(line["message"]["content"] for line in lines))
        return f"200 {self._reason(lines[-1]['done_reason'])}"

    async def talk(self) -> str:
        """A conversation of two turns, long enough to be worth a prefill."""
        word, outcome = self._rng.choice(WORDS), ""
        messages = [self._head]
        for _ in range(2):
            question = f"{word} {self._rng.randrange(10**6)} {word}. {self._head['content']}"
            messages.append({"role": "user", "content": question})
            response = await self._http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 90})
            if response.status_code != 200:
                return self._refusal(response.status_code, response.text)
            choice = response.json()["choices"][0]
            reply = choice["message"]["content"]
            self._check_own(word, reply)
            outcome = f"200 {self._reason(choice['finish_reason'])}"
            messages.append({"role": "assistant", "content": reply})
            await asyncio.sleep(self._rng.random() * 0.5)
        return outcome

    async def leaver(self) -> str:
        path, body = self._question(self._rng.choice(WORDS))
        task = asyncio.ensure_future(self._http.post(path, json={**body, "stream": self._rng.random() < 0.5}))
        done, _ = await asyncio.wait({task}, timeout=self._rng.random() * 0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return "was quick" if done else "left"

    def _question(self, word: str) -> tuple[str, dict[str, Any]]:
        if self._echo:
            text = f"{word} {self._rng.randrange(10**6)} {word}"
            return "/v1/chat/completions", {
                "messages": [self._head, {"role": "user", "content": text}],
                "max_tokens": 90,
            }
        return "/v1/completions", {"prompt": " ".join([word] * 40), "max_tokens": 12, "temperature": 0}

    def _check_own(self, word: str, reply: str) -> None:
        # A real engine's own reply may differ from the learned one: how it computes a prompt in pieces decides a near tie.
        others = [other for other in WORDS if other != word and self._marks[other] in reply]
        if others or (self._echo and word not in reply):
            raise Violation(f"cross-talk: asked with {word!r}, answered {reply!r}")

    def _reason(self, reason: str | None) -> str:
        if reason not in ("stop", "length"):
            raise Violation(f"a reply with finish reason {reason!r}")
        return reason

    def _refusal(self, status: int, text: str) -> str:
        error = json.loads(text).get("error")
        ollamas = status == 500 and isinstance(error, str) and "nternal error" not in error  # as Ollama says 502
        if not error or not (ollamas or status in REFUSALS):
            raise Violation(f"status {status}: {text!r}")
        return str(status)

    def _in_stream_error(self, event: str) -> str:
        if "error" not in json.loads(event):
            raise Violation(f"a stream ended without an end: {event!r}")
        return "200, then an error"


LIMIT = {"num_predict": 90}
LONG = 220  # tokens
