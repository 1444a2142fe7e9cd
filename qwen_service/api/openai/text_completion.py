"""Turns events into OpenAI's text_completion objects and chunks (POST /v1/completions with a plain prompt)."""

import time
from collections.abc import AsyncGenerator, Sequence
from itertools import accumulate
from typing import Any

from qwen_service.api.openai.response import DONE, total, usage_object
from qwen_service.api.reply import ReplyHeaders, sse
from qwen_service.api.streaming import Events
from qwen_service.chat import Event, Finished, Started, TextDelta, TokenLogprob, Usage


class TextCompletion:
    """One answer, whole or in chunks. `echoes`: for each choice, the text of its prompt that is repeated."""

    def __init__(
        self,
        request_id: str,
        echoes: Sequence[str],
        *,
        per_prompt: int,
        logprobs: bool,
        include_usage: bool,
        headers: ReplyHeaders,
    ) -> None:
        self._id = request_id
        self._created = int(time.time())
        self._echoes = echoes
        self._per_prompt = per_prompt
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._headers = headers
        self._usages: dict[int, Usage] = {}
        self._offsets = [len(echo) for echo in echoes]  # per choice: position of the next token in its text

    async def whole(self, events: Events) -> dict[str, Any]:
        texts = [[echo] for echo in self._echoes]
        entries: list[list[TokenLogprob]] = [[] for _ in self._echoes]
        reasons: list[str | None] = [None for _ in self._echoes]
        async for index, event in events:
            self._note(index, event)
            if isinstance(event, TextDelta):
                texts[index].append(event.text)
                entries[index] += event.logprobs
            elif isinstance(event, Finished):
                reasons[index] = event.reason
        choices = [
            self._choice(index, "".join(text), entries[index], reasons[index]) for index, text in enumerate(texts)
        ]
        return self._object(choices) | {"usage": usage_object(self._total())}

    async def chunks(self, events: Events) -> AsyncGenerator[bytes, None]:
        echoes = dict(enumerate(self._echoes))
        async for index, event in events:
            self._note(index, event)
            if isinstance(event, TextDelta):
                yield self._chunk([self._choice(index, echoes.pop(index, "") + event.text, event.logprobs, None)])
            elif isinstance(event, Finished):
                yield self._chunk([self._choice(index, echoes.pop(index, ""), (), event.reason)])
        if self._include_usage:
            yield sse(self._object([]) | {"usage": usage_object(self._total())})
        yield DONE

    def _note(self, index: int, event: Event) -> None:
        if isinstance(event, Started):
            self._headers.started = self._headers.started or event
        elif isinstance(event, Finished):
            self._usages[index] = event.usage

    def _chunk(self, choices: list[dict[str, Any]]) -> bytes:
        usage = {"usage": None} if self._include_usage else {}
        return sse(self._object(choices) | usage)

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        model = self._headers.started.model if self._headers.started else ""
        head = {"id": self._id, "object": "text_completion", "created": self._created, "model": model}
        return {**head, "choices": choices}

    def _choice(self, index: int, text: str, logprobs: Sequence[TokenLogprob], reason: str | None) -> dict[str, Any]:
        entries = self._entries(index, logprobs) if self._logprobs and logprobs else None
        return {"index": index, "text": text, "logprobs": entries, "finish_reason": reason}

    def _total(self) -> Usage:
        first = [usage for index, usage in self._usages.items() if index % self._per_prompt == 0]
        return total(self._usages.values(), prompts=first)

    def _entries(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        offsets = list(accumulate((len(entry.token) for entry in logprobs), initial=self._offsets[index]))
        self._offsets[index] = offsets.pop()
        return {
            "tokens": [entry.token for entry in logprobs],
            "token_logprobs": [entry.logprob for entry in logprobs],
            "top_logprobs": [{other.token: other.logprob for other in entry.top} for entry in logprobs],
            "text_offset": offsets,
        }
