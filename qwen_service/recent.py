"""Bounds a mapping: only the entries that were put last are kept."""

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def put_recent(entries: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Put an entry at the end, and drop the oldest one when there are more than `most`."""
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > most:
        entries.popitem(last=False)
