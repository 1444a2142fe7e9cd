"""Finds the places where a conversation that is too long may be cut.

The oldest turns are dropped; system messages never are, nor the last user message with everything after
it. A turn is a user message with everything up to the next one, so a tool result is never separated from its call. Lines
that stable_prefix.py put before a user message belong to its turn.
"""

from collections.abc import Sequence
from typing import NamedTuple

from qwen_service.chat import IMAGE_TOKENS, Message

Turn = list[Message]
_BYTES_PER_TOKEN = 4
_BYTES_AROUND_A_MESSAGE = 20  # role, tags and newlines that a template adds


class Cut(NamedTuple):
    turns: int  # number of oldest turns that are dropped
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
    """All cuts, from none to all turns but the last, at the turns where the dropped text passes a multiple of the step.

    These places stay the same while a conversation grows, so one cut serves several turns and the KV
    cache keeps matching. The step is a quarter of the budget of tokens, with four bytes per token.
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
    """The size of a message in bytes, which needs no tokenizer."""
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
