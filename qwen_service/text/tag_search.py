"""Finds a tag or a stop string in text that is still growing, or the place where one could begin.

Text before the first such place is safe to send; text after it must wait for the next piece.
"""

from typing import NamedTuple


class Place(NamedTuple):
    """A place where a needle, or its beginning, was found. Places sort in the order in which they take effect: leftmost
    first; at the same position a whole needle before the beginning of one,
    and of two whole needles the one that was complete first. So the result does not depend on how the text was cut."""

    start: int
    partial: bool
    end: int
    needle: str


def place(text: str, needle: str, *, growing: bool) -> Place | None:
    """The first place of `needle`; else the place at the end of the text where more text could complete it."""
    start = text.find(needle)
    if start >= 0:
        return Place(start, False, start + len(needle), needle)
    start = text.find(needle[0], max(0, len(text) - len(needle) + 1)) if growing else -1
    while start >= 0:
        if needle.startswith(text[start:]):
            return Place(start, True, len(text), needle)
        start = text.find(needle[0], start + 1)
    return None


def padded_place(text: str, needle: str, padding: str | None, *, growing: bool) -> Place | None:
    """Like `place`, but the padding in front of the needle counts as a part of it. None: any white space."""
    found = place(text, needle, growing=growing)
    if found:
        return found._replace(start=len(text[: found.start].rstrip(padding)))
    start = len(text.rstrip(padding)) if growing else len(text)
    return Place(start, True, len(text), needle) if start < len(text) else None
