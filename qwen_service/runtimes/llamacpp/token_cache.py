"""Remembers the ids of tokenized texts, so that only the newest message of a conversation is tokenized."""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

CHARACTERS = 500_000  # characters kept at most, about 2 MB with their ids


class TokenCache:
    """A cache bounded in characters; the least recently used text is dropped first."""

    def __init__(self, characters: int = CHARACTERS) -> None:
        self._room = characters
        self._ids: OrderedDict[str, array[int]] = OrderedDict()

    def known(self, texts: Iterable[str]) -> dict[str, Sequence[int]]:
        found: dict[str, Sequence[int]] = {}
        for text in texts:
            if text in self._ids:
                self._ids.move_to_end(text)
                found[text] = self._ids[text]
        return found

    def put(self, new: Mapping[str, Sequence[int]]) -> None:
        for text, ids in new.items():
            if text not in self._ids:
                self._ids[text] = array("i", ids)
                self._room -= len(text)
        while self._room < 0:
            oldest, _ = self._ids.popitem(last=False)
            self._room += len(oldest)
