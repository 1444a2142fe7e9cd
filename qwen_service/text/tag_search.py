"""Where a tag or a stop string stands in text that is still growing, or could yet begin.

What lies before the first such place is safe to send; what lies behind it must wait for the next piece.
"""

from typing import NamedTuple


class Place(NamedTuple):
    """Ordered as they take effect: the leftmost first, at one spot a whole needle before a beginning of one,
    and of two whole ones the one that was whole first. So the outcome does not depend on how text is cut."""

    start: int
    partial: bool
    end: int
    needle: str


def place(text: str, needle: str, *, growing: bool) -> Place | None:
    """The first place of `needle`, or else the place at the end that more text may turn into it."""
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
    """As `place`, with the padding in front of the needle as a part of it; None is any white space."""
    found = place(text, needle, growing=growing)
    if found:
        return found._replace(start=len(text[: found.start].rstrip(padding)))
    start = len(text.rstrip(padding)) if growing else len(text)
    return Place(start, True, len(text), needle) if start < len(text) else None
