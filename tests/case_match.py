"""Patterns of JSON: an expected value that leaves open what a test cannot know.

An object must have the keys that are named, and may have others; a list must have as many items. Strings that begin
with `$` are patterns: $any, $int, $number, $string, $absent, $~ and a regular expression that must be found.
"""

import re
from collections.abc import Mapping
from typing import Any

_KINDS: dict[str, type | tuple[type, ...]] = {"$int": int, "$number": (int, float), "$string": str, "$any": object}
_ABSENT = object()


def difference(expected: Any, actual: Any, where: str = "$") -> str | None:
    """Where and how `actual` is not what was expected; None when it is."""
    if isinstance(expected, str) and expected.startswith("$"):
        return None if _fits(expected, actual) else f"{where}: expected {expected}, got {_shown(actual)}"
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        return _first(difference(value, actual.get(key, _ABSENT), f"{where}.{key}") for key, value in expected.items())
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return f"{where}: expected {len(expected)} items, got {len(actual)}: {actual!r}"
        return _first(difference(e, a, f"{where}[{i}]") for i, (e, a) in enumerate(zip(expected, actual, strict=True)))
    same = type(expected) is type(actual) and expected == actual
    return None if same else f"{where}: expected {expected!r}, got {_shown(actual)}"


def _fits(pattern: str, actual: Any) -> bool:
    if pattern == "$absent":
        return actual is _ABSENT
    if pattern.startswith("$~"):
        return isinstance(actual, str) and re.search(pattern[2:], actual, re.DOTALL) is not None
    return actual is not _ABSENT and not isinstance(actual, bool) and isinstance(actual, _KINDS[pattern])


def _first(differences: Any) -> str | None:
    return next(filter(None, differences), None)


def _shown(actual: Any) -> str:
    return "nothing" if actual is _ABSENT else repr(actual)
