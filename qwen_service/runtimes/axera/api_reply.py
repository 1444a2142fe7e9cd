"""What the program decodes of one reply -> Pieces, ended by eos, by max_tokens, or by the program. IO-free."""

from typing import Literal

from qwen_service.runtime import Piece
from qwen_service.runtimes.axera.channel import ChannelEvent, Decoded, Idle
from qwen_service.runtimes.axera.reply_tokens import BATCH, ReplyTokens, refuse_endless_run
from qwen_service.text.tokenizer import TokenDecoder


class AxApiReply:
    """`ids` are those handed out, `tokens` all that the program has generated. After `ended` there are no more pieces."""

    def __init__(self, decoder: TokenDecoder, *, eos_id: int | None, budget: int) -> None:
        self._decoder = decoder
        self._eos_id = eos_id
        self._budget = budget
        self.tokens = ReplyTokens()
        self.ids: list[int] = []
        self.ended = False

    def feed(self, event: ChannelEvent) -> Piece | None:
        """Raises ProtocolError when what comes cannot be a reply."""
        match event:
            case Decoded(call):
                return self._piece(self.tokens.feed(call), more_follows=len(call) == BATCH)
            case Idle():
                self.tokens.finish()
                return self._piece([], more_follows=False)
            case _:
                return None

    def overhear(self, event: ChannelEvent) -> bool:
        """What comes when nobody wants the reply any more. True: the program has ended it."""
        self.feed(event)
        return self.tokens.ended

    def _piece(self, fresh: list[int], *, more_follows: bool) -> Piece | None:
        if self.ended:
            return None
        begun = self._before_eos(fresh)
        taken = begun[: self._budget - len(self.ids)]
        self.ids += taken
        refuse_endless_run(self.ids)
        reason = self._reason(cut=len(taken) < len(begun), eos=len(begun) < len(fresh), more_follows=more_follows)
        self.ended = reason is not None
        if not taken and not self.ended:
            return None
        text = self._decoder.feed(taken) + (self._decoder.finish() if self.ended else "")
        return Piece(text, len(taken), tuple(taken), finish_reason=reason)

    def _before_eos(self, fresh: list[int]) -> list[int]:
        # The program does not test its first token for eos: it decodes it, keeps it, and goes on.
        return fresh[: fresh.index(self._eos_id)] if self._eos_id in fresh else fresh

    def _reason(self, *, cut: bool, eos: bool, more_follows: bool) -> Literal["stop", "length"] | None:
        if eos and not cut:
            return "stop"
        if cut or (len(self.ids) >= self._budget and more_follows and not self.tokens.ended):
            return "length"
        if self.tokens.cut:  # nobody has stopped it: its context was full
            return "length"
        return "stop" if self.tokens.ended else None
