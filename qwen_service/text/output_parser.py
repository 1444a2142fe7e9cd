"""Pieces of a reply -> text, reasoning and tool-call events. Free of IO: feed() each piece, then finish().

- Stop strings end the visible text; they are not searched in reasoning and in the payload of a tool call.
- A think block counts at the start of a reply only: later on the tag is something the model writes about.
- <tool_call> counts when a JSON object follows it. A call that is not well-formed stays visible text, tags included.
- A reply that begins with a call of one of `tool_names` without tags, in a code fence or not, is that call.
- A call drafted while thinking is a call only if the thinking never ends: models do forget </think>.
- Newlines around think blocks and white space around calls belong to the format and are dropped.
- However a reply is cut into pieces, the joined events are the same, and nothing goes out that a later piece
  could turn into a tag or a stop string.
"""

import re
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from qwen_service.chat import FinishReason, ReasoningDelta, TextDelta, TokenLogprob, ToolCall
from qwen_service.runtime import Piece
from qwen_service.text.tool_calls import bare_call_payload, could_be_bare_call, find_outside_strings, parse_tool_call

Parsed = TextDelta | ReasoningDelta | ToolCall
RuntimeReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The opening and closing tags a model writes; None where it has no such thing."""

    reasoning: tuple[str, str] | None = None
    tool_call: tuple[str, str] | None = None

    @classmethod
    def of_template(cls, source: str) -> "OutputFormat":
        """Read the tags from the chat template, which contains the tags that its model writes."""
        return cls(
            reasoning=("<think>", "</think>") if "</think>" in source else None,
            tool_call=("<tool_call>", "</tool_call>") if "<tool_call>" in source else None,
        )


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


class HeldText:
    def __init__(self) -> None:
        self.text = ""
        # (position where their text ends, logprobs)
        self._logprobs: deque[tuple[int, tuple[TokenLogprob, ...]]] = deque()

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        if piece.logprobs:
            self._logprobs.append((len(self.text), piece.logprobs))

    def take(self, length: int) -> tuple[str, tuple[TokenLogprob, ...]]:
        """Take `length` characters off the front, with the logprobs of the tokens that end in them."""
        taken, self.text = self.text[:length], self.text[length:]
        logprobs: list[TokenLogprob] = []
        while self._logprobs and self._logprobs[0][0] <= length:
            logprobs.extend(self._logprobs.popleft()[1])
        if self._logprobs:
            self._logprobs = deque((end - length, values) for end, values in self._logprobs)
        return taken, tuple(logprobs)


class OutputParser:
    """`stopped` becomes true when no more output will come and the engine can be stopped: after a stop string, or
    after the first call when parallel calls are not wanted."""

    def __init__(
        self,
        output_format: OutputFormat,
        *,
        stop: Sequence[str] = (),
        tools: bool,
        tool_names: Collection[str] = (),
        parallel_tool_calls: bool = True,
        starts_in_reasoning: bool = False,
    ) -> None:
        self._think_open, self._think_close = output_format.reasoning or ("", "")
        self._call_open, self._call_close = (output_format.tool_call if tools else None) or ("", "")
        # A stop string that begins with the tag of a call can never stand in visible text.
        self._stops = [s for s in stop if s and not (self._call_open and s.lstrip().startswith(self._call_open))]
        self._tool_names = tool_names
        self._one_call = not parallel_tool_calls
        self._held = HeldText()
        self._events: list[Parsed] = []
        self._skip: str | None = ""  # characters to drop at the front, for str.lstrip; None: any white space
        self._opening_length = 0  # length of the opening tag of the current call, with the white space before it
        self._ending: RuntimeReason | None = None
        self._advance: Callable[[], bool] = self._in_start if self._think_open else self._in_opening
        if starts_in_reasoning and self._think_open:
            self._enter(self._in_reasoning, skip="\n")
        self.stopped = False
        self.stop_string: str | None = None  # the stop string that ended the reply
        self.tool_calls = 0
        self.reasoning_tokens = 0

    def feed(self, piece: Piece) -> list[Parsed]:
        if self.stopped:
            return []
        if self._is_passing():
            return [TextDelta(piece.text, piece.logprobs)] if piece.text or piece.logprobs else []
        was_reasoning = self._advance == self._in_reasoning
        self._held.add(piece)
        events = self._run()
        if was_reasoning or self._advance == self._in_reasoning:
            self.reasoning_tokens += piece.token_count
        return events

    def finish(self, reason: RuntimeReason) -> list[Parsed]:
        """Return the events of the text that was held back, at the end. A call that the token limit cut is dropped."""
        self._ending = reason
        return [] if self.stopped else self._run()

    def finish_reason(self, reason: RuntimeReason) -> FinishReason:
        """The finish reason for the client. Call it after finish()."""
        if reason == "length" and not self.stopped:
            return "length"
        return "tool_calls" if self.tool_calls else "stop"

    def _is_passing(self) -> bool:
        """Whether text can pass as it is: nothing is searched or held. True for most tokens."""
        return not (self._stops or self._call_open or self._skip != "") and self._advance == self._in_text

    def _run(self) -> list[Parsed]:
        self._events = []
        self._drop_skipped()
        while self._advance():
            self._drop_skipped()
        return self._events

    def _drop_skipped(self) -> None:
        if self._skip != "":
            kept = self._held.text.lstrip(self._skip)
            self._held.take(len(self._held.text) - len(kept))
            self._skip = "" if kept else self._skip

    def _enter(self, state: Callable[[], bool], *, skip: str | None = "") -> bool:
        self._advance, self._skip = state, skip
        return True

    # Each state returns whether the next state should continue with the held text.

    def _in_start(self) -> bool:
        text = self._held.text
        begin = text.lstrip()
        if begin.startswith(self._think_open):
            self._held.take(len(text) - len(begin) + len(self._think_open))
            return self._enter(self._in_reasoning, skip="\n")
        if self._ending is None and self._think_open.startswith(begin):
            return False
        return self._enter(self._in_opening)

    def _in_reasoning(self) -> bool:
        text, growing = self._held.text, self._ending is None
        close = padded_place(text, self._think_close, "\n", growing=growing)
        if close and not close.partial:
            self._think(close.start)
            self._held.take(close.end - close.start)
            return self._enter(self._in_opening, skip="\n")
        call = padded_place(text, self._call_open, "\n", growing=growing) if self._call_open else None
        if growing:
            self._think(min((held.start for held in (close, call) if held), default=len(text)))
            return False
        return self._end_in_reasoning(text)

    def _end_in_reasoning(self, text: str) -> bool:
        call = re.search(re.escape(self._call_open) + r"\s*\{", text) if self._call_open else None
        if call and self._ending == "stop":
            self._think(len(text[: call.start()].rstrip("\n")))
            return self._enter(self._in_text)
        self._think(len(text))
        return False

    def _in_opening(self) -> bool:
        """The start of the visible text. Some models forget the tags of a call when it is the whole reply."""
        is_call = could_be_bare_call(self._held.text, self._tool_names) if self._tool_names else False
        if is_call is None and self._ending is None:
            return False
        return self._enter(self._in_bare_call if is_call else self._in_text, skip=self._skip)

    def _in_bare_call(self) -> bool:
        payload = bare_call_payload(self._held.text) if "}" in self._held.text else None
        if payload is None:
            return self._ending == "stop" and self._enter(self._in_text)
        call = parse_tool_call(payload)
        if call is None:
            return self._enter(self._in_text)
        self._emit(call)
        self.stopped = True  # models then repeat the call, or invent its result
        return False

    def _in_text(self) -> bool:
        text = self._held.text
        found = self._find_in_text(text)
        self._say(found.start if found else len(text))
        if found is None or found.partial:
            return False
        if found.needle != self._call_open:
            self.stopped = True
            self.stop_string = found.needle
            return False
        self._opening_length = found.end - found.start
        return self._enter(self._in_call)

    def _find_in_text(self, text: str) -> Place | None:
        growing = self._ending is None
        found = [place(text, needle, growing=growing) for needle in self._stops]
        if self._call_open:
            found.append(padded_place(text, self._call_open, None, growing=growing))
        return min(filter(None, found), default=None)

    def _in_call(self) -> bool:
        payload = self._held.text[self._opening_length :]
        if payload.lstrip()[:1] not in ("", "{"):
            return self._reject_call()
        end = find_outside_strings(payload, self._call_close) if self._call_close in payload else -1
        if end >= 0:
            return self._take_call(payload[:end], end + len(self._call_close))
        if self._ending == "stop":  # the closing tag was forgotten
            return self._take_call(payload, len(payload))
        return False

    def _take_call(self, payload: str, length: int) -> bool:
        call = parse_tool_call(payload)
        if call is None:
            return self._reject_call()
        self._emit(call)
        self._held.take(self._opening_length + length)
        self.stopped = self._one_call
        return self._enter(self._in_text, skip=None) and not self.stopped

    def _reject_call(self) -> bool:
        """Treat the tag as text, and search the text after it like any other."""
        self._say(self._opening_length)
        return self._enter(self._in_text)

    def _emit(self, call: ToolCall) -> None:
        self._events.append(call)
        self.tool_calls += 1

    def _say(self, length: int) -> None:
        text, logprobs = self._held.take(length)
        if text or logprobs:
            self._events.append(TextDelta(text, logprobs))

    def _think(self, length: int) -> None:
        text, _ = self._held.take(length)
        if text:
            self._events.append(ReasoningDelta(text))
