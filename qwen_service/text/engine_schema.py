"""What of a client's schema the engine is given to enforce; the rest is for our own check of the whole reply.

llguidance writes an array's bounds out, item by item: `minItems` of 10**9 took all memory, and the engine was killed;
`maxItems` of 10**6 held every generation up for five seconds. It bounds the other ways to make a grammar huge itself.
"""

from collections.abc import Mapping
from typing import Any

MOST_ITEMS = 2_000  # that the bounds of one schema may name in all; a request may have 128, one for each tool
ITEMS = ("minItems", "maxItems")
DATA = ("const", "enum", "default", "examples")  # values, not schemas

# The engine drops a whole grammar over a keyword that it does not know, without a word; told to be lenient it
# leaves that keyword to our own check. At most one character of white space between two tokens of JSON: small models
# write as much as they may, and on a card each costs a quarter of a second.
GUIDANCE = {"x-guidance": {"lenient": True, "whitespace_pattern": r"[ \n]?"}}


def guided(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**_Bounded().copy(schema), **GUIDANCE}


class _Bounded:
    """Copies one schema without the bounds of arrays that go beyond what is left of MOST_ITEMS."""

    def __init__(self) -> None:
        self._left = MOST_ITEMS

    def copy(self, part: Any) -> Any:
        match part:
            case Mapping():
                kept = {key: value for key, value in part.items() if not self._is_vain(key, value)}
                return {key: value if key in DATA else self.copy(value) for key, value in kept.items()}
            case list() | tuple():
                return [self.copy(item) for item in part]
            case _:
                return part

    def _is_vain(self, key: str, value: Any) -> bool:
        """A bound of an array, and too much. Where a property has its name, no number stands there."""
        if key not in ITEMS or not isinstance(value, int | float):
            return False
        if not value <= self._left:  # NaN is too much
            return True
        self._left -= max(0, int(value))
        return False
