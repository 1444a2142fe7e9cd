"""What a program decodes of one reply -> Pieces, ended by the model, by a number of tokens, or by the context. IO-free."""

from collections.abc import Collection
from typing import Literal

from qwen_service.runtime import Piece
from qwen_service.runtimes.axera.channel import ChannelEvent, Decoded, Idle
from qwen_service.runtimes.axera.reply_tokens import BATCH, ReplyTokens, refuse_endless_run
from qwen_service.text.tokenizer import TokenDecoder


class AxeraReply:
    """`ids` are those handed out, `tokens` all that the program has generated. After `ended` there are no more pieces.

    `end_ids` end a reply and are no text: the program itself knows at most one of them, and does not test its first token
    for it. `most`: how many ids are handed out. `room`: what the context has left for the reply, in tokens, where a
    program does not tell that its context was full.
    """

    def __init__(
        self, decoder: TokenDecoder, *, end_ids: Collection[int], most: int | None, room: int | None = None
    ) -> None:
        self._decoder = decoder
        self._end_ids = end_ids
        self._most = most
        self._room = room
        self.tokens = ReplyTokens()
        self.ids: list[int] = []
        self.finish_reason: Literal["stop", "length"] | None = None

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None

    def feed(self, event: ChannelEvent) -> Piece | None:
        """Raises ProtocolError when the event cannot be of a reply."""
        match event:
            case Decoded(call):
                fresh = self.tokens.feed(call)
                return self._piece(fresh, more_follows=len(call) == BATCH and not self.tokens.ended)
            case Idle():
                self.tokens.finish()
                return self._piece([], more_follows=False)
            case _:
                return None

    def overhear(self, event: ChannelEvent) -> bool:
        """Take an event that comes when nobody wants the reply any more. Returns True once the program has ended it."""
        self.feed(event)
        return self.tokens.ended

    def _piece(self, fresh: list[int], *, more_follows: bool) -> Piece | None:
        if self.ended:
            return None
        text_ids = self._before_end(fresh)
        taken = text_ids[: self._left()]
        self.ids += taken
        refuse_endless_run(self.ids)
        reason = self._reason(eos=len(text_ids) < len(fresh), cut=len(taken) < len(text_ids), more_follows=more_follows)
        self.finish_reason = reason
        if not taken and not self.ended:
            return None
        text = self._decoder.feed(taken) + (self._decoder.finish() if self.ended else "")
        return Piece(text, len(taken), tuple(taken), finish_reason=reason)

    def _before_end(self, fresh: list[int]) -> list[int]:
        at = next((place for place, id_ in enumerate(fresh) if id_ in self._end_ids), len(fresh))
        return fresh[:at]

    def _left(self) -> int | None:
        return None if self._most is None else self._most - len(self.ids)

    def _reason(self, *, eos: bool, cut: bool, more_follows: bool) -> Literal["stop", "length"] | None:
        if cut or (self._left() == 0 and not eos and more_follows):
            return "length"
        if eos:
            return "stop"
        if not self.tokens.ended:
            return None
        # One token of tolerance: whether the last place of the context is used differs between builds.
        full = self._room is not None and len(self.ids) >= self._room - 1
        return "length" if self.tokens.cut or full else "stop"
