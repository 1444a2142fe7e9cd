"""How many conversations axllm keeps in its KV cache, and where: what it is told, and what it says of it. IO-free.

`kv_cache_slots` in its config.json says how many; by itself it keeps one. A slot lies in the card's memory (`device`) or in the
host's (`host`), from where it is copied when its conversation goes on. It makes fewer slots where they do not fit.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SLOTS, LOCATION = "kv_cache_slots", "kv_cache_slot_location"  # keys of config.json
LAZY = "dynamic_load_enable"  # layers are loaded as they are needed; axllm then keeps one conversation
WANTED = 4
SPARE = 768 * 1024  # KiB of the card: 256 MiB that axllm itself leaves, and what a speech model may need
HOST_SPARE = 1024 * 1024  # KiB; axllm itself leaves half of it
ID_AND_LAYER = 4  # KiB at most: key and value of 8 heads of 128 numbers in 16 bits each

Location = Literal["device", "host"]

_MADE = re.compile(r"multi-slot prefix KV cache(?: enabled: slots=|: )(\d+)\D.*location=(\w+)")
_SIZE = re.compile(r"kv slot budget.* per_slot<?=(\d+)MB")
_TAKEN = re.compile(r"kv slot select: chosen=(\d+) reuse=(\d+) shared=(\d+) req=(\d+)")


@dataclass(frozen=True, slots=True)
class Room:
    """Free KiB for slots, once the model is loaded; None: not known. `slot`: what one takes, as axllm has said; 0: not yet."""

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
    """Which slot a prompt got, and how many of its ids (messages, if the model has eyes) are and are not held there."""

    slot: int
    shared: int
    fresh: int
    told: bool = False


def chosen(config: Mapping[str, Any], room: Room, context: int, *, wanted: int = 0) -> Slots | None:
    """None: nothing is to be told, since its owner has, or since nobody knows what fits. `wanted` 0: as many as are useful."""
    if SLOTS in config or config.get(LAZY) or wanted == 1 or room.card is None:
        return None
    most = wanted or WANTED
    slot = room.slot or ID_AND_LAYER * context * int(config.get("axmodel_num", 0))
    if slot <= 0:
        return None
    on_card, on_host = 1 + max(0, room.card - SPARE) // slot, 1 + max(0, room.host - HOST_SPARE) // slot
    if on_card > 1 or on_host > 1:
        return Slots(min(most, on_card)) if on_card >= min(most, on_host) else Slots(min(most, on_host), "host")
    # An estimate is too high for some models. axllm itself makes no slot that does not fit, and says what one takes.
    return None if room.slot else Slots(2)


class SlotLog:
    """What axllm's log says of its slots; feed() it line by line."""

    def __init__(self) -> None:
        self.made = Slots()
        self.slot_size = 0  # KiB; 0: not said
        self.taken: Taken | None = None  # by the last prompt, since it was set to None

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
