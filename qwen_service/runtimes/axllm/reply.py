"""The text of one reply of axllm -> Pieces with counts, a limit and a finish reason that are true. IO-free.

axllm reports none of these: its finish_reason is always "stop" and its usage is empty.
"""

import re
from typing import Literal

from qwen_service.runtime import Piece
from qwen_service.text.tokenizer import LocalTokenizer

TAGS = re.compile(r"(</?(?:think|tool_call)>)")  # each is one token where the vocabulary has it


class AxLlmReply:
    """Counts with the model's tokenizer; without one, each piece of text counts as one token, as axllm streams them."""

    def __init__(self, tokenizer: LocalTokenizer | None, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._text = ""
        self._pieces = 0
        self._count = 0
        self.ended = False

    @property
    def text(self) -> str:
        """All of it, as the model wrote it."""
        return self._text

    @property
    def ids(self) -> tuple[int, ...]:
        """As far as they are known, of a reply whose text stays in the conversation: thoughts do not."""
        if self._tokenizer is None or "<think>" in self._text:
            return ()
        return tuple(self._encoded(self._tokenizer))

    def feed(self, text: str) -> Piece | None:
        if not text or self.ended:
            return None
        if self._count >= self._max_tokens:  # axllm was told; this build does not listen
            return self.finish(cut=True)
        self._text += text
        self._pieces += 1
        fresh = max(0, self._total() - self._count)
        self._count += fresh
        return Piece(text, fresh)

    def finish(self, *, cut: bool) -> Piece:
        """The last piece. `cut`: its end was not the model's."""
        self.ended = True
        # Tokens of a text can be fewer than those it was written with, so the pieces are looked at, too.
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
