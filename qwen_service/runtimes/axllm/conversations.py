"""Which slot of axllm's KV cache a prompt goes to, and what the slots hold. IO-free.

axllm takes the slot with which a prompt has most leading ids in common, from 8 on. So conversations that begin alike (one system
message) share a slot and overwrite each other, however many are free; and where none is free, a new conversation overwrites
the one that was used last. Therefore the service decides: each slot has a mark, a number of line breaks before the text of the
first message, which makes its prompts differ from all others from the third id on. The first slot's mark is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwen_service.chat import ChatRequest

STEP = 128  # ids; a prompt of no more is computed afresh where there are several slots
OPENING = 8  # ids at the end of a prompt that do not stay: how a reply begins, with empty thoughts
MOST_RECENT = 0.5  # the chance that the conversation in the slot used last goes on; it halves from slot to slot
UNHURRIED = 0.1  # what computing an id counts while nobody waits, and losing one counts 1

Ids = tuple[int, ...]


@dataclass(slots=True)
class _Slot:
    ids: Ids = ()
    asked: int = 0  # of these, the prompt's
    used: int = 0  # when last; 0: never


@dataclass(frozen=True, slots=True)
class Place:
    """`shared`: ids of the prompt that the slot holds. `loses`: ids of others' conversations, by the chance that they go on."""

    slot: int
    shared: int
    loses: float


class Conversations:
    def __init__(self, slots: int = 1) -> None:
        self._slots = [_Slot() for _ in range(slots)]
        self._clock = 0

    def place(self, ids: Ids, *, in_a_hurry: bool = True) -> Place:
        """Where it costs least: what is not held must be computed, and what is overwritten would be missed."""
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
    """As axllm is to see it, so that it takes this slot."""
    if not slot or not request.messages:
        return request
    first, *others = request.messages
    return replace(request, messages=(replace(first, content="\n" * slot + first.content), *others))


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
