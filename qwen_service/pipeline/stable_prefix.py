"""Keeps the beginning of prompts constant when it contains a clock: the clock's line moves next to the question.

A KV cache can be reused only up to the first id that differs. A system message that begins with the time of day differs
in each request, so nothing after it could be reused. A line of a leading system message moves when it contains a time or
a date and was seen to change in digits only. It is then shown directly before the last message
of the user, and stays there in later turns, so that a continued conversation still matches the cache.

Text in, text out. Lines and questions are kept in memory only.
"""

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from qwen_service.chat import ChatRequest, Message
from qwen_service.recent import put_recent

LONGEST_LINE = 300  # characters; longer lines never move
REMEMBERED = 1024  # lines, and questions
MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
TIME_OR_DATE = re.compile(
    r"(?<!\d)\d{1,2}:\d{2}(?!\d)|(?<![\d.])\d{4}([-/.])\d{1,2}\1\d{1,2}(?!\d|\.\d)"
    r"|(?<![\d.])\d{1,2}([-/.])\d{1,2}\2\d{2,4}(?!\d|\.\d)"
    rf"|\b(?:{MONTHS})[a-z]*\.?,?\s+\d|\b\d{{1,2}}(?:st|nd|rd|th|\.)?\s+(?:{MONTHS})[a-z]*\b",
    re.IGNORECASE,
)
_DIGIT = re.compile(r"\d")


class StablePrefix:
    """Moves the lines. One object serves all clients: a line that is a clock for one is a clock for all.

    `moving`: digests of the lines that move, taken without their digits. `on_learned` is called with all when one is added.
    """

    def __init__(self, moving: Iterable[str] = (), on_learned: Callable[[list[str]], None] = lambda _: None) -> None:
        self._moving = list(moving)
        self._on_learned = on_learned
        self._lines: OrderedDict[str, str] = OrderedDict()  # digest -> the line as last seen
        # Digest of a conversation up to a question -> the lines shown before it.
        self._shown: OrderedDict[str, str] = OrderedDict()

    def applied(self, request: ChatRequest, *, late_system: bool, only_count: bool = False) -> ChatRequest:
        """The request to render. Its `moved_lines` counts the lines that were moved.

        `late_system`: the template shows a later system message; otherwise the lines are put at the head of the question.
        `only_count`: remember nothing of this request.
        """
        questions = [place for place, message in enumerate(request.messages) if message.role == "user"]
        if request.prompt is not None or not questions:
            return request
        leading = next(at for at, message in enumerate(request.messages) if message.role != "system")
        stable, moved = self._split(request.messages[:leading], remember=not only_count)
        if not moved and not self._shown:
            return request
        rest = request.messages[leading:]
        messages = self._placed(stable, rest, "\n".join(moved), late_system=late_system, remember=not only_count)
        return replace(request, messages=messages, moved_lines=len(moved))

    def _split(self, leading: Sequence[Message], *, remember: bool) -> tuple[list[Message], list[str]]:
        """Part the leading system messages: without the lines that move, and those lines."""
        stable: list[Message] = []
        moved: list[str] = []
        for message in leading:
            kept: list[str] = []
            for line in message.content.split("\n"):
                (moved if self._moves(line, remember=remember) else kept).append(line)
            content = "\n".join(kept)
            if content.strip() or not message.content.strip():
                stable.append(replace(message, content=content))
        return stable, [line.strip() for line in moved]

    def _moves(self, line: str, *, remember: bool) -> bool:
        if len(line) > LONGEST_LINE or not TIME_OR_DATE.search(line):
            return False
        shape = hashlib.blake2b(_DIGIT.sub("0", line).encode(errors="replace"), digest_size=16).hexdigest()
        if shape in self._moving:
            return True
        moves = (self._lines.get(shape) or line) != line
        if remember:
            put_recent(self._lines, shape, line, REMEMBERED)
        if remember and moves:
            self._moving = [*self._moving[-REMEMBERED + 1 :], shape]
            self._on_learned(self._moving)
        return moves

    def _placed(
        self, stable: Sequence[Message], rest: Sequence[Message], now: str, *, late_system: bool, remember: bool
    ) -> tuple[Message, ...]:
        last = max(place for place, message in enumerate(rest) if message.role == "user")
        placed: list[Message] = list(stable)
        digest = hashlib.blake2b(_spelled(stable), digest_size=16)
        for place, message in enumerate(rest):
            digest.update(_spelled([message]))
            lines = ""
            if message.role == "user":
                key = digest.digest().hex()
                known = self._shown.get(key)
                is_new = place == last and (known is None or last == len(rest) - 1)  # its reply has not begun
                lines = now if is_new else known or ""
                if remember and lines:
                    put_recent(self._shown, key, lines, REMEMBERED)
            placed += _with_lines(message, lines, late_system=late_system)
        return tuple(placed)


def _with_lines(message: Message, lines: str, *, late_system: bool) -> list[Message]:
    if not lines:
        return [message]
    if late_system:
        return [Message("system", lines, moved=True), message]
    return [replace(message, content=f"{lines}\n\n{message.content}")]


def _spelled(messages: Sequence[Message]) -> bytes:
    said = [[m.role, m.content.strip(), m.tool_call_id, [call.name for call in m.tool_calls]] for m in messages]
    return json.dumps(said).encode()
