"""What the REPL program decodes of one reply -> Pieces, ended by the model, max_tokens, or the context. IO-free."""

from collections.abc import Collection
from typing import Literal

from qwen_service.errors import ProtocolError
from qwen_service.runtime import Piece
from qwen_service.runtimes.axera.reply_tokens import BATCH, ReplyTokens, refuse_endless_run
from qwen_service.text.tokenizer import TokenDecoder

FinishReason = Literal["stop", "length"]


class ReplReply:
    """`ids` are those handed out, `tokens` all that the program has generated. `ended`: there is nothing more to hand out.

    `end_ids` end a reply and are no text: the program itself knows one of them only. `room`: what the context has left
    for the reply, in tokens.
    """

    def __init__(self, decoder: TokenDecoder, *, end_ids: Collection[int], max_tokens: int | None, room: int) -> None:
        self._decoder = decoder
        self._end_ids = end_ids
        self._max_tokens = max_tokens
        self._room = room
        self.tokens = ReplyTokens()
        self.ids: list[int] = []
        self.ended = False

    def feed(self, call: tuple[int, ...]) -> Piece | None:
        """One call of /decode. Raises ProtocolError when it cannot be of a reply."""
        fresh = self.tokens.feed(call)
        return self._piece(fresh, more_follows=len(call) == BATCH and not self.tokens.ended)

    def finish(self) -> Piece | None:
        """The program waits for a prompt again: what has come is all. None when the end was known already."""
        if not self.tokens.may_be_over:
            raise ProtocolError("The runtime waits for a prompt before it has decoded its whole reply.")
        self.tokens.finish()
        return self._piece([], more_follows=False)

    def _piece(self, fresh: list[int], *, more_follows: bool) -> Piece | None:
        if self.ended:
            return None
        text_ids = self._before_end(fresh)
        taken = text_ids[: self._left()]
        self.ids += taken
        refuse_endless_run(self.ids)
        reason = self._reason(eos=len(text_ids) < len(fresh), cut=len(taken) < len(text_ids), more_follows=more_follows)
        self.ended = reason is not None
        if not taken and not self.ended:
            return None
        text = self._decoder.feed(taken) + (self._decoder.finish() if self.ended else "")
        return Piece(text, len(taken), tuple(taken), finish_reason=reason)

    def _before_end(self, fresh: list[int]) -> list[int]:
        at = next((place for place, id_ in enumerate(fresh) if id_ in self._end_ids), len(fresh))
        return fresh[:at]

    def _left(self) -> int | None:
        return None if self._max_tokens is None else self._max_tokens - len(self.ids)

    def _reason(self, *, eos: bool, cut: bool, more_follows: bool) -> FinishReason | None:
        if cut or (self._left() == 0 and not eos and more_follows):
            return "length"
        if eos:
            return "stop"
        if not self.tokens.ended:
            return None
        # One token of tolerance: whether the last place of the context is used differs between builds.
        return "length" if self.tokens.cut or len(self.ids) >= self._room - 1 else "stop"
