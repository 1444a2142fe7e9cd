"""The answers of the tokenizer server: both dialects of the vendor's programs, and the documented routes for people.

A program's prompt is the key of a channel, which /encode exchanges for the channel's ids; the key of a reset comes as its
system prompt. A uid belongs to the channel whose key it sent last; the plain dialect, which has no uid, belongs to the
only program. Each further /decode is posted to that channel and answered with empty text, so that a program
prints only its own messages, and no reply ends up in a log.

Every answer is well-formed and lets a program go on, whatever was asked.
"""

import asyncio
import logging
import secrets
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from qwen_service.runtimes.axera.channel import Decoded, Encoded, ResetCalled, TokenChannel
from qwen_service.runtimes.axera.tokenizer_http import Answer
from qwen_service.text.tokenizer import LONG_TEXT, LocalTokenizer

# (messages, the request's own template) -> prompt text
RenderPrompt = Callable[[list[dict[str, Any]], str | None], str]
Body = dict[str, Any]


class TokenizerRoutes:
    """open_*() are called in the main loop, answer() in the server's thread."""

    def __init__(self, tokenizer: LocalTokenizer, log: logging.Logger, render: RenderPrompt | None) -> None:
        self._tokenizer = tokenizer
        self._log = log
        self._render = render
        self._lock = threading.Lock()
        self._prompts: dict[str, TokenChannel] = {}  # by key
        self._resets: dict[str, TokenChannel] = {}
        self._bound: dict[str | None, TokenChannel] = {}  # by uid
        self._started = time.monotonic()
        self._calls = 0
        self.foreign_calls = 0  # prompts and resets that we did not register: somebody else uses the program
        self._routes: dict[str, Callable[[Body], Answer | Awaitable[Answer]]] = {
            "/encode": self._encode,
            "/decode": self._decode,
            "/reset": self._reset,
            "/get_uid": lambda _: {"uid": str(uuid.uuid4())},
            "/bos_id": lambda _: {"bos_id": _or_minus_one(tokenizer.bos_id)},
            "/eos_id": lambda _: {"eos_id": _or_minus_one(tokenizer.eos_id)},
            "/chat_template": self._chat_template,
            "/health": self._health,
        }

    def open_prompt(self, token_ids: tuple[int, ...], diff: tuple[int, ...], *, longest_hold: float) -> TokenChannel:
        key = "q" + secrets.token_hex(4)
        return self._open(self._prompts, TokenChannel(key, token_ids, diff, self._forget, longest_hold))

    def open_reset(self, token_ids: tuple[int, ...]) -> TokenChannel:
        key = "r" + secrets.token_hex(4)
        return self._open(self._resets, TokenChannel(key, token_ids, token_ids, self._forget, longest_hold=0))

    @property
    def open_prompts(self) -> int:
        return len(self._prompts)

    def answer(self, path: str, content: bytes) -> Answer | Awaitable[Answer]:
        self._calls += 1
        url = urlsplit(path)
        route = self._routes.get(url.path)
        if route is None:
            return {"error": f"There is no {url.path} here, only {', '.join(self._routes)}."}
        try:
            return route(_parse(content, url.query))
        except Exception as error:  # the program must get an answer; the fault is ours, and is logged
            self._log.exception("%s failed", url.path)
            return self._harmless(f"{type(error).__name__}: {error}")

    def _open(self, channels: dict[str, TokenChannel], channel: TokenChannel) -> TokenChannel:
        with self._lock:
            channels[channel.key] = channel
        return channel

    def _forget(self, channel: TokenChannel) -> None:
        with self._lock:
            self._prompts.pop(channel.key, None)
            self._resets.pop(channel.key, None)
            self._bound = {uid: other for uid, other in self._bound.items() if other is not channel}

    def _encode(self, body: Body) -> Answer | Awaitable[Answer]:
        text = body.get("text")
        if not isinstance(text, str):
            return self._harmless('"text" must be a string')
        with self._lock:
            channel = self._prompts.get(text)
            if channel is not None:
                self._bound[_uid(body)] = channel
        if channel is None:
            self.foreign_calls += "uid" in body
            if len(text) >= LONG_TEXT:
                return self._encode_text(text)
            return self._encoded(self._tokenizer.encode_now([text]))
        channel.post(Encoded())
        return {"token_ids": channel.token_ids, "diff": channel.diff}

    async def _encode_text(self, text: str) -> Answer:
        return self._encoded(await self._tokenizer.encode([text]))

    def _encoded(self, ids: list[int]) -> Answer:
        # An empty list of ids would crash the program.
        return {"tokens": ids, "length": len(ids), "token_ids": ids or self._one_id(), "diff": ids or self._one_id()}

    def _decode(self, body: Body) -> Answer | Awaitable[Answer]:
        ids = body.get("tokens", body.get("token_ids"))
        if not (isinstance(ids, list) and all(isinstance(id_, int) for id_ in ids)):
            return self._harmless('"tokens" must be a list of integers')
        channel = None if "tokens" in body else self._bound.get(_uid(body))
        if channel is not None:
            held = channel.gate.holds(len(ids))
            channel.post(Decoded(tuple(ids), held))
            return self._when_released(channel) if held else {"text": ""}
        return self._decode_ids(ids) if len(ids) >= LONG_TEXT else {"text": self._tokenizer.decode_now(ids)}

    async def _when_released(self, channel: TokenChannel) -> Answer:
        await channel.gate.until_released()
        return {"text": ""}

    async def _decode_ids(self, ids: Sequence[int]) -> Answer:
        return {"text": await asyncio.to_thread(self._tokenizer.decode_now, ids)}

    def _reset(self, body: Body) -> Answer:
        key = body.get("system_prompt")
        with self._lock:
            channel = self._resets.get(key) if isinstance(key, str) else None
        if channel is None:
            self.foreign_calls += 1
            return {"token_ids": self._one_id()}  # at the program's start, before our first reset
        channel.post(ResetCalled())
        return {"token_ids": channel.token_ids}

    def _chat_template(self, body: Body) -> Answer | Awaitable[Answer]:
        messages, template = body.get("messages"), body.get("template")
        if self._render is None:
            return self._harmless("this model has no chat template")
        if not isinstance(messages, list) or not isinstance(template, str | None):
            return self._harmless('"messages" must be a list, "template" a string')
        return self._render_in_thread(self._render, messages, template)

    async def _render_in_thread(self, render: RenderPrompt, messages: list[Any], template: str | None) -> Answer:
        try:
            return {"prompt": await asyncio.to_thread(render, messages, template)}
        except Exception as error:  # a person's own template may fail in any way; the answer says how
            return self._harmless(f"{type(error).__name__}: {error}")

    def _health(self, _: Body) -> Answer:
        return {
            "status": "ok",
            "vocab_size": self._tokenizer.vocab_size,
            "calls": self._calls,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
        }

    def _one_id(self) -> list[int]:
        return [self._tokenizer.eos_id or 0]

    def _harmless(self, error: str) -> Answer:
        """An error answer with the keys of every dialect: a program survives it, a person can read it."""
        nothing = {"tokens": [], "length": 0, "text": "", "prompt": ""}
        return {"error": error, **nothing, "token_ids": self._one_id(), "diff": self._one_id()}


def _parse(content: bytes, query: str) -> Body:
    """Parse a body. Bad JSON, and JSON that is no object, count as an empty object."""
    body: Body = {key: values[-1] for key, values in parse_qs(query).items()}
    try:
        parsed = orjson.loads(content) if content else {}
    except orjson.JSONDecodeError:
        parsed = {}
    return body | parsed if isinstance(parsed, dict) else body


def _uid(body: Body) -> str | None:
    return None if body.get("uid") is None else str(body["uid"])


def _or_minus_one(token_id: int | None) -> int:
    return -1 if token_id is None else token_id  # the programs write -1 for none
