"""The part of a client's schema that the engine enforces. We check the whole schema on the finished reply.

llguidance expands an array's bounds item by item: `minItems` of 10**9 took all memory, and the engine was killed;
`maxItems` of 10**6 delayed every generation by five seconds. It bounds the other ways to a huge grammar itself.
"""

from collections.abc import Mapping
from typing import Any

MOST_ITEMS = 2_000  # items that all array bounds of one schema may add up to; each of 128 tools may have a schema
ITEMS = ("minItems", "maxItems")
DATA = ("const", "enum", "default", "examples")  # values, not schemas

# The engine silently drops a whole grammar because of one unknown keyword. Told to be lenient, it
# ignores that keyword, which we check ourselves. At most one white space between two tokens of JSON: small models
# write as much as they may, and each costs a quarter of a second on a card.
GUIDANCE = {"x-guidance": {"lenient": True, "whitespace_pattern": r"[ \n]?"}}


def guided(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**_Bounded().copy(schema), **GUIDANCE}


class _Bounded:
    """Copies one schema and leaves out array bounds that exceed the rest of MOST_ITEMS."""

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
        """Whether this is an array bound that is too large. A property of the same name has a schema, not a number."""
        if key not in ITEMS or not isinstance(value, int | float):
            return False
        if not value <= self._left:  # NaN counts as too large
            return True
        self._left -= max(0, int(value))
        return False
