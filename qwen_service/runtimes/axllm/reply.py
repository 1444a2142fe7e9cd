"""Turns the text of one reply of axllm into Pieces with true counts, limit and finish reason. IO-free.

axllm reports none of these: its finish_reason is always "stop" and its usage is empty.
"""

import re
from typing import Literal

from qwen_service.runtime import Piece
from qwen_service.text.tokenizer import LocalTokenizer

TAGS = re.compile(r"(</?(?:think|tool_call)>)")  # each is one token if the vocabulary has it


class AxLlmReply:
    """The reply. Counts with the model's tokenizer; without one, each piece of text counts as one token."""

    def __init__(self, tokenizer: LocalTokenizer | None, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._text = ""
        self._pieces = 0
        self._count = 0
        self.ended = False

    @property
    def text(self) -> str:
        """The whole text, as the model wrote it."""
        return self._text

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the reply, as far as known; empty for a reply with thoughts, which do not stay in the conversation."""
        if self._tokenizer is None or "<think>" in self._text:
            return ()
        return tuple(self._encoded(self._tokenizer))

    def feed(self, text: str) -> Piece | None:
        if not text or self.ended:
            return None
        if self._count >= self._max_tokens:  # axllm was given the limit, but this build ignores it
            return self.finish(cut=True)
        self._text += text
        self._pieces += 1
        fresh = max(0, self._total() - self._count)
        self._count += fresh
        return Piece(text, fresh)

    def finish(self, *, cut: bool) -> Piece:
        """Make the last piece. `cut`: the model did not end the reply itself."""
        self.ended = True
        # A text can have fewer tokens than it was generated with, so the number of pieces counts, too.
        full = max(self._count, self._pieces) >= self._max_tokens
        reason: Literal["stop", "length"] = "length" if cut or full else "stop"
        return Piece(finish_reason=reason)

    def _total(self) -> int:
        if self._tokenizer is None:
            return self._pieces
        return len(self._encoded(self._tokenizer))

    def _encoded(self, tokenizer: LocalTokenizer) -> list[int]:
        ids = tokenizer.special_ids
        return tokenizer.encode_now([ids.get(part, part) for part in TAGS.split(self._text) if part])
