"""The slots of axllm's KV cache, one for each conversation: how many, where, what they hold, and which a prompt gets. IO-free.

`kv_cache_slots` in its config.json sets the number; the default is one. A slot lies in the card's memory (`device`) or in the
host's (`host`), from where it is copied when its conversation continues. axllm makes fewer slots when they do not fit.

axllm takes the slot that shares the most leading ids with the prompt, if 8 or more. So conversations that begin alike (one system
message) share a slot and overwrite each other, even when slots are free; and when none is free, a new conversation overwrites
the slot used last. Therefore the service decides: each slot has a mark, a number of line breaks before the text of the
first message, so that its prompts differ from all others from the third id on. The first slot has no mark.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from qwen_service.chat import ChatRequest
from qwen_service.runtime import common_length

SLOTS, LOCATION = "kv_cache_slots", "kv_cache_slot_location"  # keys of config.json
LAZY = "dynamic_load_enable"  # layers are loaded on demand; axllm then keeps only one conversation
WANTED = 4
SPARE = 768 * 1024  # KiB of the card left free: 256 MiB for axllm itself, the rest for a speech model
HOST_SPARE = 1024 * 1024  # KiB; axllm itself leaves half of it
ID_AND_LAYER = 4  # KiB at most: key and value of 8 heads of 128 numbers in 16 bits each

Location = Literal["device", "host"]

_MADE = re.compile(r"multi-slot prefix KV cache(?: enabled: slots=|: )(\d+)\D.*location=(\w+)")
_SIZE = re.compile(r"kv slot budget.* per_slot<?=(\d+)MB")
_TAKEN = re.compile(r"kv slot select: chosen=(\d+) reuse=(\d+) shared=(\d+) req=(\d+)")
STEP = 128  # ids; with several slots a prompt of at most so many is always computed from the start
OPENING = 8  # ids at the end of a prompt that later turns do not repeat: the beginning of a reply, with empty thoughts
MOST_RECENT = 0.5  # chance that the conversation in the slot used last continues; halved for each older slot
UNHURRIED = 0.1  # cost of computing one id between requests; the loss of one cached id costs 1

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """Free KiB for slots beside the loaded model; None: unknown. `slot`: KiB of one, as axllm has reported; 0: unknown."""

    card: int | None
    host: int
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Slots:
    count: int = 1
    location: Location = "device"

    def __str__(self) -> str:
        where = "on the card" if self.location == "device" else "in the host's memory"
        return f"{self.count} conversations, {where}" if self.count > 1 else "1 conversation"


@dataclass(frozen=True, slots=True)
class Taken:
    """The slot of a prompt, and how many of its ids (messages, for a model with vision) it holds and lacks."""

    slot: int
    shared: int
    fresh: int
    told: bool = False


def chosen(config: Mapping[str, Any], room: Room, context: int, *, wanted: int = 0) -> Slots | None:
    """Choose the slots; None: leave the config as it is, because its owner has set them or their size is unknown. `wanted` 0: as many as are useful."""
    if SLOTS in config or config.get(LAZY) or wanted == 1 or room.card is None:
        return None
    most = wanted or WANTED
    slot = room.slot or ID_AND_LAYER * context * int(config.get("axmodel_num", 0))
    if slot <= 0:
        return None
    on_card, on_host = 1 + max(0, room.card - SPARE) // slot, 1 + max(0, room.host - HOST_SPARE) // slot
    if on_card > 1 or on_host > 1:
        return Slots(min(most, on_card)) if on_card >= min(most, on_host) else Slots(min(most, on_host), "host")
    # The estimate is too high for some models. axllm makes only slots that fit, and reports the size of one.
    return None if room.slot else Slots(2)


class SlotLog:
    """Reads axllm's log about its slots; feed() it line by line."""

    def __init__(self) -> None:
        self.made = Slots()
        self.slot_size = 0  # KiB; 0: not reported
        self.taken: Taken | None = None  # of the last prompt; set to None before each

    def feed(self, line: str) -> None:
        if "kv slot" not in line and "KV cache" not in line:
            return
        if found := _MADE.search(line):
            self.made = Slots(int(found[1]), "host" if found[2] == "host" else "device")
        elif found := _SIZE.search(line):
            self.slot_size = max(self.slot_size, int(found[1]) * 1024)
        elif found := _TAKEN.search(line):
            shared = int(found[3]) if found[2] != "0" else 0
            self.taken = Taken(int(found[1]), shared, int(found[4]) - shared)


@dataclass(slots=True)
class _Slot:
    ids: Ids = ()
    asked: int = 0  # of these, the ids of the prompt
    used: int = 0  # time of the last use; 0: never


@dataclass(frozen=True, slots=True)
class Place:
    """A slot for a prompt. `shared` and `lacks`: how many ids of the prompt it holds, and how many must be computed.

    `loses`: expected loss in ids of other conversations.
    """

    slot: int
    shared: int
    lacks: int
    loses: float


class Conversations:
    """Knows what the slots hold, and chooses the slot for a prompt."""

    def __init__(self, slots: int = 1) -> None:
        self._slots = [_Slot() for _ in range(slots)]
        self._clock = 0

    def place(self, ids: Ids, *, in_a_hurry: bool = True) -> Place:
        """Choose the cheapest slot: ids that are not held must be computed, and overwritten ids are lost."""
        price = 1 if in_a_hurry else UNHURRIED
        places = [self._weighed(number, ids) for number in range(len(self._slots))]
        return min(places, key=lambda place: (price * place.lacks + place.loses, -place.shared))

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
        shared = 0 if computed_afresh else common
        return Place(number, shared, len(ids) - shared, loses)


def marked(request: ChatRequest, slot: int) -> ChatRequest:
    """Mark the messages, so that axllm takes this slot."""
    if not slot or not request.messages:
        return request
    first, *others = request.messages
    return replace(request, messages=(replace(first, content="\n" * slot + first.content), *others))
