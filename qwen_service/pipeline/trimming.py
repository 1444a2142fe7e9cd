"""Where a conversation that is too long may be cut.

What is dropped: the oldest turns. What never is: system messages, and the last user message with all that follows
it. A turn is a user message with everything up to the next one, so a tool result is never separated from its call. What
the service has put before a user message (stable_prefix.py) goes with it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from qwen_service.chat import IMAGE_TOKENS, Message

Turn = list[Message]
_BYTES_PER_TOKEN = 4
_BYTES_AROUND_A_MESSAGE = 20  # that a template adds: role, tags, newlines


class Cut(NamedTuple):
    turns: int  # that are dropped, the oldest
    bytes_left: int


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    turns: list[Turn] = [[]]
    for message in messages:
        follows_moved = bool(turns[-1]) and turns[-1][-1].moved
        begins = message.moved or (message.role == "user" and not follows_moved)
        if begins and turns[-1]:
            turns.append([])
        turns[-1].append(message)
    return turns


def cuts(turns: Sequence[Turn], budget: int) -> list[Cut]:
    """From none to all turns but the last: where the dropped text passes a multiple of the step.

    These places do not move while a conversation grows, so a cut stays where it is for several turns and the KV
    cache still matches. The step is a quarter of the budget of tokens, a token being four bytes.
    """
    step = max(1, budget)
    sizes = [_size(turn) for turn in turns]
    total, dropped = sum(sizes), 0
    found = [Cut(0, total)]
    for number, size in enumerate(sizes[:-1], start=1):
        before, dropped = dropped, dropped + size
        if before // step < dropped // step or number == len(turns) - 1:
            found.append(Cut(number, total - dropped))
    return found


def without_oldest(turns: Sequence[Turn], number: int) -> tuple[Message, ...]:
    kept = [message for turn in turns[:number] for message in turn if _stays(message)]
    return (*kept, *(message for turn in turns[number:] for message in turn))


def _size(turn: Turn) -> int:
    """Bytes that dropping it saves: needs no tokenizer, and never changes."""
    return sum(
        len(message.content.encode(errors="replace"))
        + sum(len(call.arguments) for call in message.tool_calls)
        + _BYTES_PER_TOKEN * IMAGE_TOKENS * len(message.images)
        + _BYTES_AROUND_A_MESSAGE
        for message in turn
        if not _stays(message)
    )


def _stays(message: Message) -> bool:
    return message.role == "system" and not message.moved
