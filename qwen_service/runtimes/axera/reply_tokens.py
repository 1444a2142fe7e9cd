"""Turns the /decode calls of one reply into its token ids, each exactly once. IO-free.

The program decodes its reply in batches of three (the last one at eos may be shorter), then once more as a whole.
The last call is the end marker and the authoritative list: on a stop or at the end of the context, up to two tokens
appear only there. Which call is the last one follows from its length, except where a reply is so short that a batch
and the whole look alike; then the next call decides, or finish() when the program waits again.
"""

from collections.abc import Sequence

from qwen_service.errors import ProtocolError

BATCH = 3
LONGEST_RUN = 256  # repetitions of one token: a failed NPU repeats its last one for ever


class ReplyTokens:
    """feed() returns the new ids; `ended` is true once the whole reply was seen.

    `ids`: all ids returned so far. `cut`: the last tokens came with the whole only, so not eos but a stop or the end of
    the context ended the reply. `finished`: the program waits for a prompt again.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._seen: list[int] = []
        self._undecided: list[int] = []  # a batch equal to all ids so far: a repetition, or the whole reply
        self._calls = 0
        self._partial = False  # a batch of fewer than three came: the reply has ended, the whole follows
        self.ended = False
        self.cut = False
        self.finished = False

    def feed(self, call: Sequence[int]) -> list[int]:
        fresh = self._fresh(call)
        self.ids += fresh
        return fresh

    def _fresh(self, call: Sequence[int]) -> list[int]:
        if self.ended:
            raise ProtocolError(f"The runtime decoded {len(call)} tokens after the end of its reply.")
        self._calls += 1
        fresh = self._release_undecided()
        if self._is_whole(call):
            self.ended = True
            rest = self._rest_of(call)
            self.cut = bool(rest)
            return fresh + rest
        if len(self._seen) == BATCH and list(call) == self._seen:
            self._undecided = list(call)
            return fresh
        self._partial = len(call) < BATCH
        self._seen += call
        return fresh + list(call)

    @property
    def undecided(self) -> bool:
        """Whether the last call may be the whole reply, or a batch that repeats the one before."""
        return bool(self._undecided)

    def refuse_early_end(self) -> None:
        """Raise ProtocolError when the whole reply cannot have been decoded yet."""
        if not (self.ended or (self._calls > 0 and len(self._seen) <= BATCH)):
            raise ProtocolError("The runtime waits for a prompt before it has decoded its whole reply.")

    def finish(self) -> None:
        """Note that the program waits again: an undecided call was then the whole reply, which adds no ids.

        An only call was the whole reply, and there was no eos: at eos a batch comes first, even in the shortest reply.
        """
        self.cut = self.cut or (self._calls == 1 and not self.ended)
        self._undecided = []
        self.ended = self.finished = True

    def _release_undecided(self) -> list[int]:
        fresh, self._undecided = self._undecided, []
        self._seen += fresh
        return fresh

    def _is_whole(self, call: Sequence[int]) -> bool:
        return len(call) > BATCH or not call or self._partial

    def _rest_of(self, whole: Sequence[int]) -> list[int]:
        if list(whole[: len(self._seen)]) != self._seen:
            raise ProtocolError("The runtime's whole reply does not begin with the tokens that it streamed.")
        return list(whole[len(self._seen) :])


def refuse_endless_run(ids: Sequence[int]) -> None:
    """Raise ProtocolError when a reply repeats one token over and over."""
    run = ids[-LONGEST_RUN:]
    if len(run) == LONGEST_RUN and len(set(run)) == 1:
        raise ProtocolError(f"The NPU has produced the same token {LONGEST_RUN} times: it has probably failed.")
