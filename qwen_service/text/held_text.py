"""Model output that is held back until it is clear what it is, with the logprobs of its tokens."""

from collections import deque

from qwen_service.chat import TokenLogprob
from qwen_service.runtime import Piece


class HeldText:
    def __init__(self) -> None:
        self.text = ""
        self._logprobs: deque[tuple[int, tuple[TokenLogprob, ...]]] = (
            deque()
        )  # (position where their text ends, logprobs)

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        if piece.logprobs:
            self._logprobs.append((len(self.text), piece.logprobs))

    def take(self, length: int) -> tuple[str, tuple[TokenLogprob, ...]]:
        """Take `count` characters off the front, with the logprobs of the tokens that end in them."""
        taken, self.text = self.text[:length], self.text[length:]
        logprobs: list[TokenLogprob] = []
        while self._logprobs and self._logprobs[0][0] <= length:
            logprobs.extend(self._logprobs.popleft()[1])
        if self._logprobs:
            self._logprobs = deque((end - length, values) for end, values in self._logprobs)
        return taken, tuple(logprobs)
