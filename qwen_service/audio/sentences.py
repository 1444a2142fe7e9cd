"""Cuts a long text into pieces that are spoken one by one, so that the first sound does not wait for the last sentence."""

import re
from collections.abc import Iterator

FIRST = 40  # characters after which the first piece ends at the next sentence: the listener waits for it
ENOUGH = 160  # the same for the later ones: longer pieces have a better melody
LONGEST = 400  # no piece is longer; Kokoro takes about 510 phonemes at once

_END = re.compile(r"""(?<=[.!?…])["'”’»)\]]*\s+(?=\S)|(?<=[。！？；])\s*|\n\s*\n\s*|(?<=[:;])\s+""")
# A full stop after one of these does not end a sentence: a single capital, a number, an abbreviation.
_NO_END = re.compile(
    r"(?:\b[A-Z]|^\s*\d+|\b(?:Dr|Mr|Mrs|Ms|Prof|St|Nr|No|vs|etc|ca|bzw|usw|e\.g|i\.e|z\.B|d\.h|u\.a))\.$", re.MULTILINE
)


def pieces(text: str) -> list[str]:
    """The pieces in order, none empty, none longer than LONGEST; only the white space between them is dropped."""
    result: list[str] = []
    held = ""
    for sentence in _sentences(text):
        if held and len(held) + 1 + len(sentence) > LONGEST:
            result.append(held)
            held = ""
        held = f"{held} {sentence}".strip()
        if len(held) >= (ENOUGH if result else FIRST):
            result.append(held)
            held = ""
    return [*result, held] if held else result


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(text):
        if not _NO_END.search(text, max(start, end.start() - 12), end.start()):
            yield from _bounded(text[start : end.start()] + end.group().rstrip())
            start = end.end()
    yield from _bounded(text[start:])


def _bounded(sentence: str) -> Iterator[str]:
    """Cut a sentence into pieces of at most LONGEST characters, at a comma or a space where possible."""
    rest = " ".join(sentence.split())
    while len(rest) > LONGEST:
        window = rest[:LONGEST]
        cut = max(window.rfind(mark) + 1 for mark in (", ", "，", "、"))
        cut = cut if cut > LONGEST // 2 else window.rfind(" ")
        cut = cut if cut > 0 else LONGEST
        yield rest[:cut].strip()
        rest = rest[cut:].strip()
    if rest:
        yield rest
