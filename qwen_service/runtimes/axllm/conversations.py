"""Chooses the slot of axllm's KV cache for a prompt, and knows what the slots hold. IO-free.

axllm takes the slot that shares the most leading ids with the prompt, if 8 or more. So conversations that begin alike (one system
message) share a slot and overwrite each other, even when slots are free; and when none is free, a new conversation overwrites
the slot used last. Therefore the service decides: each slot has a mark, a number of line breaks before the text of the
first message, so that its prompts differ from all others from the third id on. The first slot has no mark.
"""

from dataclasses import dataclass, replace

from qwen_service.chat import ChatRequest
from qwen_service.runtime import common_length

STEP = 128  # ids; with several slots a prompt of at most so many is always computed from the start
OPENING = 8  # ids at the end of a prompt that later turns do not repeat: the beginning of a reply, with empty thoughts
MOST_RECENT = 0.5  # chance that the conversation in the slot used last continues; halved for each older slot
UNHURRIED = 0.1  # cost of computing an id while nobody waits; losing a cached id costs 1

Ids = tuple[int, ...]


@dataclass(slots=True)
class _Slot:
    ids: Ids = ()
    asked: int = 0  # of these, the ids of the prompt
    used: int = 0  # time of the last use; 0: never


@dataclass(frozen=True, slots=True)
class Place:
    """A slot for a prompt. `shared`: ids of the prompt that it holds. `loses`: expected loss in ids of other conversations."""

    slot: int
    shared: int
    loses: float


class Conversations:
    def __init__(self, slots: int = 1) -> None:
        self._slots = [_Slot() for _ in range(slots)]
        self._clock = 0

    def place(self, ids: Ids, *, in_a_hurry: bool = True) -> Place:
        """Choose the cheapest slot: ids that are not held must be computed, and overwritten ids are lost."""
        price = 1 if in_a_hurry else UNHURRIED
        places = [self._weighed(number, ids) for number in range(len(self._slots))]
        return min(places, key=lambda place: (price * (len(ids) - place.shared) + place.loses, -place.shared))

    def hold(self, slot: int, prompt: Ids, reply: Ids = ()) -> None:
        self._clock += 1
        self._slots[slot] = _Slot(prompt + reply, len(prompt), self._clock)

    def forget(self, slot: int) -> None:
        self._slots[slot] = _Slot()

    def _weighed(self, number: int, ids: Ids) -> Place:
        slot = self._slots[number]
        common = common_length(slot.ids, ids)
        rank = sum(other.used > slot.used for other in self._slots)
        loses = max(0, slot.asked - OPENING - common) * MOST_RECENT / 2**rank
        computed_afresh = len(self._slots) > 1 and len(ids) <= STEP
        return Place(number, 0 if computed_afresh else common, loses)


def marked(request: ChatRequest, slot: int) -> ChatRequest:
    """Mark the messages, so that axllm takes this slot."""
    if not slot or not request.messages:
        return request
    first, *others = request.messages
    return replace(request, messages=(replace(first, content="\n" * slot + first.content), *others))
