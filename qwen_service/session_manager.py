"""Fit a conversation into a context, and continue what a KV cache holds.

What is dropped: the oldest turns. What never is: system messages, and the last user message with all that follows
it. A turn is a user message with everything up to the next one, so a tool result is never separated from its call.

Replies of ours go back as the ids that the engine generated, an empty think block included, and not as a
re-tokenization of their text: only then is a continued conversation an extension of what the KV cache holds.
"""

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwen_service.chat import ChatRequest, Message, ToolCall
from qwen_service.errors import PromptTooLong
from qwen_service.runtimes.base import Limits, Prompt, PromptParts
from qwen_service.served_model import ServedModel
from qwen_service.supervisor import ModelText

REMEMBERED_REPLIES = 256  # conversations per service; a few kB each
_MESSAGE_OVERHEAD = 5  # tokens a template adds to each message: role, tags, newlines


@dataclass(frozen=True, slots=True)
class Fitted:
    """`max_tokens` is what the reply may have; `trimmed` counts the messages that were dropped."""

    prompt: Prompt
    max_tokens: int
    trimmed: int
    starts_in_reasoning: bool


@dataclass(frozen=True, slots=True)
class _Rendered:
    ids: list[int]
    ending: str


class SessionManager:
    def __init__(self, *, overflow: str = "trim", default_max_tokens: int = 0) -> None:
        self._may_trim = overflow == "trim"
        self._default_max_tokens = default_max_tokens
        self._replies: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()

    async def fit(self, model: ServedModel, text: ModelText, limits: Limits, request: ChatRequest) -> Fitted:
        """Raises PromptTooLong with the numbers, InvalidRequest where the template refuses."""
        context = min(limits.context, request.context_size or limits.context)
        most = min(limits.prompt, context - 1)
        asked = request.sampling.max_tokens or self._default_max_tokens or context
        if request.prompt is not None:
            fitted, rendered = request, await _raw(text, request.prompt)
        else:
            comfortable = min(most, context - min(asked, context // 4), model.spec.prompt_budget or most)
            fitted, rendered = await self._fit_messages(text, request, comfortable, most)
        if len(rendered.ids) > most:
            raise PromptTooLong(
                f"the prompt has {len(rendered.ids)} tokens, and this model's context takes {most} ({context} with the"
                " completion). Shorten the last message or start a new conversation.",
                param="messages" if request.prompt is None else "prompt",
            )
        prompt = Prompt(tuple(rendered.ids), rendered.ending, fitted)
        return Fitted(
            prompt=prompt,
            max_tokens=min(asked, context - len(rendered.ids)),
            trimmed=len(request.messages) - len(fitted.messages),
            starts_in_reasoning=rendered.ending.rstrip().endswith("<think>"),
        )

    def remember(self, prompt: Prompt, reply: Message, reply_ids: Sequence[int]) -> None:
        """A finished reply, whose ids are all known: a later request may continue it."""
        request = prompt.request
        if request.prompt is not None:
            return
        key = _key(request, (*request.messages, reply))
        self._replies[key] = (*prompt.token_ids, *reply_ids)
        self._replies.move_to_end(key)
        if len(self._replies) > REMEMBERED_REPLIES:
            self._replies.popitem(last=False)

    async def _fit_messages(
        self, text: ModelText, request: ChatRequest, comfortable: int, most: int
    ) -> tuple[ChatRequest, _Rendered]:
        turns = _turns(request.messages)
        may_trim = self._may_trim and request.truncate and len(turns) > 1
        characters = sum(map(_size, request.messages))
        if may_trim and characters > 16 * most:  # hopeless: do not tokenize megabytes to learn by how much
            rendered, tokens = None, characters // 4
        else:
            rendered = await self._render(text, request, most)
            tokens = len(rendered.ids)
        if rendered is not None and (tokens <= comfortable or not may_trim):
            return request, rendered
        for drop in range(_first_cut(turns, tokens, comfortable), len(turns)):
            shorter = replace(request, messages=_without_oldest(turns, drop))
            rendered = await self._render(text, shorter, most)
            if len(rendered.ids) <= comfortable:
                break
        assert rendered is not None
        return shorter, rendered

    async def _render(self, text: ModelText, request: ChatRequest, most: int) -> _Rendered:
        continued = await self._continue_reply(text, request)
        if continued is not None and len(continued.ids) <= most:
            return continued
        parts = text.template.render(
            request.messages, tools=request.tools, thinking=request.thinking, kwargs=request.template_kwargs
        )
        return _Rendered(await text.tokenizer.encode(parts), _ending(text, parts))

    async def _continue_reply(self, text: ModelText, request: ChatRequest) -> _Rendered | None:
        messages = request.messages
        last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=None)
        if last is None or not self._replies:
            return None
        held = self._replies.get(_key(request, messages[: last + 1]))
        if held is None:
            return None
        rest = text.template.render_after(
            messages, last, tools=request.tools, thinking=request.thinking, kwargs=request.template_kwargs
        )
        if rest is None:
            return None
        return _Rendered([*held, *await text.tokenizer.encode(rest)], _ending(text, rest))


async def _raw(text: ModelText, prompt: str | tuple[int, ...]) -> _Rendered:
    if isinstance(prompt, tuple):
        return _Rendered(list(prompt), "")
    parts = text.template.split_raw(prompt)
    return _Rendered(await text.tokenizer.encode(parts), _ending(text, parts))


def _ending(text: ModelText, parts: PromptParts) -> str:
    """The last text of a prompt, special tokens spelled out: it tells whether the reply starts inside <think>."""
    names = {token_id: name for name, token_id in text.template.special_ids.items()}
    return "".join(names.get(part, "") if isinstance(part, int) else part[-64:] for part in parts[-4:])


def _size(message: Message) -> int:
    return len(message.content) + sum(len(call.arguments) for call in message.tool_calls)


def _turns(messages: Sequence[Message]) -> list[list[Message]]:
    turns: list[list[Message]] = [[]]
    for message in messages:
        if message.role == "user" and turns[-1]:
            turns.append([])
        turns[-1].append(message)
    return turns


def _first_cut(turns: Sequence[Sequence[Message]], tokens: int, comfortable: int) -> int:
    """How many of the oldest turns to drop at first, by their share of all characters; the result is measured.

    The overflow is rounded up to quarters of the budget, so that the cut stays where it is for several turns of a
    growing conversation and the KV cache still matches.
    """
    quarter = max(1, comfortable // 4)
    excess = math.ceil((tokens - comfortable) / quarter) * quarter
    per_character = tokens / max(1, sum(_size(message) for turn in turns for message in turn))
    freed = 0.0
    for drop, turn in enumerate(turns[:-1], start=1):
        freed += sum(_size(m) * per_character + _MESSAGE_OVERHEAD for m in turn if m.role != "system")
        if freed >= excess:
            return drop
    return len(turns) - 1


def _without_oldest(turns: Sequence[Sequence[Message]], drop: int) -> tuple[Message, ...]:
    kept = [message for turn in turns[:drop] for message in turn if message.role == "system"]
    return (*kept, *(message for turn in turns[drop:] for message in turn))


def _key(request: ChatRequest, messages: Sequence[Message]) -> bytes:
    """Digest of a conversation. What a client shows, not the reasoning, identifies a reply."""
    tools = [[tool.name, tool.description, tool.parameters] for tool in request.tools]
    digest = hashlib.blake2b(json.dumps(tools, sort_keys=True, default=dict).encode(), digest_size=16)
    for message in messages:
        calls = [[call.name, _canonical(call)] for call in message.tool_calls]
        entry = [message.role, message.content.strip(), calls, message.tool_call_id, message.name]
        digest.update(json.dumps(entry).encode())
    return digest.digest()


def _canonical(call: ToolCall) -> str:
    try:
        return json.dumps(json.loads(call.arguments), sort_keys=True)
    except ValueError:
        return call.arguments
