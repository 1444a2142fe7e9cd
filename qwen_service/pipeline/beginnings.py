"""How the next request of a client will begin: the ids that are worth holding in a KV cache.

The ids are found by rendering two requests that differ only in the text of their next message: they hold what both have in common.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from qwen_service.chat import ChatRequest, Message
from qwen_service.engine import Engine
from qwen_service.engines.served import ServedModel
from qwen_service.errors import ServiceError
from qwen_service.pipeline.conversation import SessionManager
from qwen_service.pipeline.warm_policy import Head, Ids
from qwen_service.runtime import Prompt, common_length

PROBES = ("a", "1")  # texts of the next message, with no token in common
LITTLE = 64  # ids; a prefix that lacks fewer counts as held
NOTHING_SAID = ChatRequest("warming")
NOTHING = Prompt((), NOTHING_SAID)


@dataclass(slots=True)
class Exchange:
    """A request, and the reply as far as its client has seen it. `remembered`: its generated ids are known."""

    model: ServedModel
    prompt: Prompt
    reply: Message = field(default_factory=lambda: Message("assistant", ""))
    reply_ids: tuple[int, ...] = ()
    remembered: bool = False
    cached: int = 0


class Beginnings:
    def __init__(self, sessions: SessionManager) -> None:
        self._sessions = sessions

    async def of_conversation(self, model: ServedModel, engine: Engine, exchange: Exchange) -> tuple[Prompt, bool]:
        """The beginning of the client's next request, if it continues, and whether the cache holds it."""
        request, reply = exchange.prompt.request, exchange.reply
        known = (*exchange.prompt.token_ids, *exchange.reply_ids)
        if exchange.remembered and holds(engine, known, lacking=LITTLE):
            return Prompt(known, request), True
        seen = reply.content or reply.tool_calls
        messages = (*request.messages, reply) if seen else _without_question(request.messages)
        beginning = await self.of_next(model, engine, request, messages)
        return beginning, holds(engine, beginning.token_ids, lacking=LITTLE)

    async def of_next(
        self, model: ServedModel, engine: Engine, request: ChatRequest, messages: Sequence[Message]
    ) -> Prompt:
        """The ids with which every prompt begins that continues these messages with one of the user, and such a request."""
        moved = any(message.moved for message in request.messages)
        probes = [replace(request, messages=(*messages, *_question(text, moved=moved))) for text in PROBES]
        try:
            one, other = [
                (await self._sessions.fit(model, engine.text, engine.limits, probe)).prompt for probe in probes
            ]
        except ServiceError:  # too long, or refused by the template
            return NOTHING
        shared = common_length(one.token_ids, other.token_ids)
        # Without the last id, which may merge with the text that follows.
        return Prompt(one.token_ids[: max(0, shared - 1)], one.request)


def is_conversation(request: ChatRequest) -> bool:
    """Whether it is an ordinary conversation: no raw prompt, continued reply, promised form or picture."""
    in_words = not any(message.images for message in request.messages)
    return in_words and request.prompt is None and not request.continues and request.response_format is None


def holds(engine: Engine, ids: Ids, *, lacking: int) -> bool:
    held = engine.runtime.reusable_tokens(Prompt((*ids, 0), NOTHING_SAID))
    return bool(held) and held >= len(ids) - lacking


def leading(request: ChatRequest) -> tuple[Message, ...]:
    """The leading system messages."""
    ends = (at for at, message in enumerate(request.messages) if message.role != "system" or message.moved)
    return request.messages[: next(ends, len(request.messages))]


def _question(text: str, *, moved: bool) -> tuple[Message, ...]:
    """Make the next question. `moved`: put moved lines before it."""
    asked = Message("user", text)
    return (Message("system", text, moved=True), asked) if moved else (asked,)


def _without_question(messages: Sequence[Message]) -> tuple[Message, ...]:
    last = max((at for at, message in enumerate(messages) if message.role == "user"), default=len(messages))
    return tuple(messages[: last - (last > 0 and messages[last - 1].moved)])


def head_of(model: ServedModel, request: ChatRequest) -> Head:
    """Digest that is equal for requests with the same rendering up to the first message of a user."""
    tools = [[tool.name, tool.description, tool.parameters] for tool in request.tools]
    shown = [model.name, tools, request.template_kwargs, request.thinking, request.prompt is None]
    said = [[message.role, message.content] for message in leading(request)]
    return hashlib.blake2b(json.dumps([shown, said], sort_keys=True, default=dict).encode(), digest_size=16).digest()
