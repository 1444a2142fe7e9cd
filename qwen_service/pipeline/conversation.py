"""Fits a conversation into the context so that it continues what the KV cache holds.

A conversation that is too long loses its oldest turns (trimming.py). Our own replies are sent back as the ids that the engine
generated, including an empty think block, instead of tokenizing their text again: only then is a continued
conversation an extension of what the KV cache holds.
"""

import hashlib
import json
import sys
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from qwen_service.chat import IMAGE_PLACE, IMAGE_TOKENS, ChatRequest, Message, PromptParts, ToolCall
from qwen_service.engine import ModelText
from qwen_service.engines.served import ServedModel
from qwen_service.errors import PromptTooLong, Unsupported
from qwen_service.pipeline.trimming import Cut, cuts, turns_of, without_oldest
from qwen_service.recent import put_recent
from qwen_service.runtime import Limits, Prompt, Spelled
from qwen_service.text.fill_in_middle import infill_prompt
from qwen_service.text.template import Shown

HOPELESS_BYTES_PER_TOKEN = 16  # a text with more bytes per token of room than this cannot fit; usual are 2 to 5
REMEMBERED_REPLIES = 256  # in the whole service; each takes four bytes per id of prompt and reply
_CHEAP = 100_000  # characters that are tokenized in about 0.1 s, whatever they are


@dataclass(frozen=True, slots=True)
class Rendered:
    """The prompt. `ending` is its last text; `estimate`: number of tokens of a prompt that was not tokenized.

    `beside`: tokens reserved for pictures.
    """

    ids: list[int]
    ending: str
    estimate: int = 0
    beside: int = 0
    spelled: tuple[Spelled, ...] = ()

    @property
    def size(self) -> int:
        return (self.estimate or len(self.ids)) + self.beside


async def count_or_encode(text: ModelText, parts: PromptParts, most: int) -> Rendered:
    """Tokenize, or estimate a text that is clearly longer than `most` tokens: tokenizing 4 MB would take seconds."""
    size, enough = _characters(parts), HOPELESS_BYTES_PER_TOKEN * most
    if size > max(_CHEAP, 4 * enough):
        beginning = _beginning(parts, enough)
        tokens = len(await text.tokenizer.encode(beginning))
        if tokens > 2 * most:  # so much too long that the first cut does not matter
            return Rendered([], _ending(text, parts), estimate=round(tokens * size // _characters(beginning), -3))
    return Rendered(await text.tokenizer.encode(parts), _ending(text, parts))


def _ending(text: ModelText, parts: PromptParts) -> str:
    """The last text of a prompt, with special tokens by name. It shows whether the reply starts inside <think>."""
    return text.template.spell(parts[-4:])[-64:]


def _characters(parts: PromptParts) -> int:
    return sum(len(part) for part in parts if isinstance(part, str))


def _beginning(parts: PromptParts, characters: int) -> PromptParts:
    beginning: list[str | int] = []
    for part in parts:
        if characters <= 0:
            break
        beginning.append(part[:characters] if isinstance(part, str) else part)
        characters -= len(part) if isinstance(part, str) else 0
    return beginning


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation that fits. `max_tokens` bounds the reply; `trimmed` counts the dropped messages."""

    prompt: Prompt
    max_tokens: int
    trimmed: int
    starts_in_reasoning: bool


class _Room(NamedTuple):
    """Limits of a prompt in tokens: the most, and the most that leaves the reply the room that it asked for."""

    most: int
    comfortable: int


class SessionManager:
    def __init__(self, *, overflow: str = "trim", default_max_tokens: int = 0) -> None:
        self._may_trim = overflow == "trim"
        self._default_max_tokens = default_max_tokens
        self._replies: OrderedDict[bytes, array[int]] = OrderedDict()

    async def fit(self, model: ServedModel, text: ModelText, limits: Limits, request: ChatRequest) -> Fitted:
        """Fit a request. Raises PromptTooLong with the numbers, or InvalidRequest when the template refuses."""
        context = min(limits.context, request.context_size or limits.context)
        most = min(limits.prompt, context - 1)
        asked = request.sampling.max_tokens or self._default_max_tokens or context
        if request.prompt is not None:
            fitted, rendered = request, await _raw(model, text, request, most)
        else:
            comfortable = min(most, context - min(asked, context // 4), model.spec.prompt_budget or most)
            fitted, rendered = await self._fit_messages(model, text, request, _Room(most, comfortable))
        if rendered.size > most:
            about = "about " if rendered.estimate else ""
            raise PromptTooLong(
                f"The prompt has {about}{rendered.size} tokens, and this model's context takes {most} ({context} with"
                " the completion). Shorten the last message or start a new conversation.",
                param="messages" if request.prompt is None else "prompt",
                tokens=rendered.size,
                maximum=most,
            )
        prompt = Prompt(tuple(rendered.ids), fitted, rendered.spelled)
        return Fitted(
            prompt=prompt,
            max_tokens=min(asked, context - rendered.size),
            trimmed=_from_client(request) - _from_client(fitted),
            starts_in_reasoning=rendered.ending.rstrip().endswith("<think>"),
        )

    async def count(self, model: ServedModel, text: ModelText, limits: Limits, request: ChatRequest) -> int:
        """Count the tokens of the untrimmed conversation; an estimate when it is many times the context."""
        return (await self._render(model, text, request, _Room(limits.context, sys.maxsize))).size

    def remember(self, model: ServedModel, prompt: Prompt, reply: Message, reply_ids: Sequence[int]) -> None:
        """Remember a finished reply whose ids are all known, so that a later request can continue it."""
        request = prompt.request
        if request.prompt is not None or request.continues or prompt.spelled:
            return
        key = _key(model, request, (*request.messages, reply))
        put_recent(self._replies, key, array("I", (*prompt.token_ids, *reply_ids)), REMEMBERED_REPLIES)

    async def _fit_messages(
        self, model: ServedModel, text: ModelText, request: ChatRequest, room: _Room
    ) -> tuple[ChatRequest, Rendered]:
        """Fit the messages: unchanged if they fit, else from the first cut that makes them fit, found by bisection."""
        turns = turns_of(request.messages)
        if not (self._may_trim and request.truncate):
            return request, await self._render(model, text, request, _Room(room.most, room.most))
        tried: dict[Cut, tuple[ChatRequest, Rendered]] = {}

        async def cut_at(cut: Cut) -> tuple[ChatRequest, Rendered]:
            if cut not in tried:
                shorter = replace(request, messages=without_oldest(turns, cut.turns))
                tried[cut] = shorter, await self._render(model, text, shorter, room)
            return tried[cut]

        places = cuts(turns, room.comfortable)
        places = [cut for cut in places if cut.bytes_left <= HOPELESS_BYTES_PER_TOKEN * room.most] or places[-1:]
        low, high = 0, len(places) - 1
        middle = low
        while low < high:
            _, rendered = await cut_at(places[middle])
            low, high = (low, middle) if rendered.size <= room.comfortable else (middle + 1, high)
            middle = (low + high) // 2
        return await cut_at(places[low])

    async def _render(self, model: ServedModel, text: ModelText, request: ChatRequest, room: _Room) -> Rendered:
        if pictures := sum(len(message.images) for message in request.messages):
            return replace(await _with_pictures(text, request, room.most), beside=IMAGE_TOKENS * pictures)
        if request.continues:
            parts = text.template.render_open(request.messages, **_shown(request))
            return await count_or_encode(text, parts, room.most)
        continued = await self._continue_reply(model, text, request, room.most)
        if continued is not None and continued.size <= room.comfortable:  # remembered thoughts may make it longer
            return continued
        return await count_or_encode(text, text.template.render(request.messages, **_shown(request)), room.most)

    async def _continue_reply(
        self, model: ServedModel, text: ModelText, request: ChatRequest, most: int
    ) -> Rendered | None:
        messages = request.messages
        last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=None)
        if last is None or not self._replies:
            return None
        held = self._replies.get(_key(model, request, messages[: last + 1]))
        if held is None:
            return None
        rest = text.template.render_after(messages, last, **_shown(request))
        if rest is None:
            return None
        after = await count_or_encode(text, rest, most)
        if after.estimate:
            return None
        new = after.ids
        if new[:1] == list(held[-1:]):  # the end-of-turn token, which some engines report as part of the reply
            new = new[1:]
        return Rendered([*held, *new], after.ending)


def _from_client(request: ChatRequest) -> int:
    return sum(not message.moved for message in request.messages)


def _shown(request: ChatRequest) -> Shown:
    """The template's arguments beside the messages."""
    return {"tools": request.tools, "thinking": request.thinking, "kwargs": request.template_kwargs}


async def _with_pictures(text: ModelText, request: ChatRequest, most: int) -> Rendered:
    """Render a conversation with pictures: each has a placeholder before the text of its message."""
    template = text.template
    messages = [
        replace(message, content=IMAGE_PLACE * len(message.images) + message.content.replace(IMAGE_PLACE, ""))
        for message in request.messages
    ]
    render = template.render_open if request.continues else template.render
    parts = render(messages, **_shown(request))
    names = {token_id: name for name, token_id in template.special_ids.items()}
    spelled = tuple(
        Spelled(names.get(part, ""), special=True) if isinstance(part, int) else Spelled(part) for part in parts
    )
    return replace(await count_or_encode(text, parts, most), spelled=spelled)


async def _raw(model: ServedModel, text: ModelText, request: ChatRequest, most: int) -> Rendered:
    if isinstance(request.prompt, tuple):
        if len(request.prompt) > most:
            return Rendered(list(request.prompt), "")
        return Rendered(await text.tokenizer.encode(request.prompt), "")  # InvalidRequest when an id is no token
    prompt = request.prompt or ""
    if request.suffix is not None:
        parts = infill_prompt(model.spec, text.template, prompt, request.suffix)
    else:
        parts = text.template.split_raw(prompt)
    return await count_or_encode(text, parts, most)


def _key(model: ServedModel, request: ChatRequest, messages: Sequence[Message]) -> bytes:
    """Digest of a conversation. A reply is identified by its visible text, without the reasoning."""
    tools = [[tool.name, tool.description, tool.parameters] for tool in request.tools]
    setting = [model.name, tools, request.template_kwargs]
    digest = hashlib.blake2b(json.dumps(setting, sort_keys=True, default=dict).encode(), digest_size=16)
    for message in messages:
        calls = [[call.name, _canonical(call)] for call in message.tool_calls]
        entry = [message.role, message.content.strip(), calls, message.tool_call_id, message.name]
        entry += [image.digest for image in message.images]
        digest.update(json.dumps(entry).encode())
    return digest.digest()


def _canonical(call: ToolCall) -> str:
    try:
        return json.dumps(json.loads(call.arguments), sort_keys=True)
    except ValueError:
        return call.arguments


async def continued(text: ModelText, request: ChatRequest) -> ChatRequest:
    """Turn the request into a prompt of ids: the client's ids, then the text that the template writes after a reply."""
    if not request.context:
        return request
    turn = (Message("user", "-"), Message("assistant", "-"), request.messages[-1])
    rest = text.template.render_after(turn, 1, thinking=request.thinking)
    if rest is None:
        raise Unsupported(
            "The chat template of this model cannot continue `context` ids. Use /api/chat.", param="context"
        )
    ids = (*request.context, *await text.tokenizer.encode(rest))
    return replace(request, messages=(), prompt=ids, context=())
