"""A generation that may be interrupted and resumed: what was generated, and what is left to do."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace

from qwen_service.chat import IMAGE_TOKENS, PromptParts, Sampling
from qwen_service.runtime import Piece, Prefill, Prompt
from qwen_service.runtimes.llamacpp.kv_room import KvRoom, Stay
from qwen_service.runtimes.local_http import EventStream

_GENERATED = re.compile(rb'"tokens_predicted":\s*(\d+)')


class Unfinished:
    """Only whole events count: the engine sends none in the middle of a character."""

    def __init__(self, prompt: Prompt, sampling: Sampling, context: int) -> None:
        self.prompt = prompt
        self.finished = False
        self._sampling = sampling
        self._context = context
        self._pieces: list[Piece] = []
        self._generated: list[int] = []  # ids generated before the last interruption
        self._count = 0
        pictures = sum(len(message.images) for message in prompt.request.messages)
        size = len(prompt.token_ids) + IMAGE_TOKENS * pictures
        most = context if sampling.max_tokens is None else min(context, size + sampling.max_tokens)
        bound = sampling.grammar is not None or sampling.json_schema is not None
        can_pause = not bound and not prompt.spelled
        self.stay = Stay(size, most, can_pause, can_end=not can_pause and most == context)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return (*self.prompt.token_ids, *self._generated)

    @property
    def sampling(self) -> Sampling:
        """The sampling for the rest."""
        most = self._sampling.max_tokens
        return self._sampling if most is None else replace(self._sampling, max_tokens=most - self._count)

    def watch(self, stream: EventStream, room: KvRoom) -> None:
        """Count tokens when they arrive, even if the client reads slowly, because the engine goes on."""
        before = self.stay.used

        def seen(body: bytes) -> None:
            if counts := _GENERATED.findall(body):
                room.grow(self.stay, before + int(counts[-1]))

        self.stay.interrupt = stream.break_off
        stream.watch(seen)
        if self.stay.interrupted:  # while the stream was opened
            stream.break_off()

    def add(self, item: Prefill | Piece) -> bool:
        """Whether the client should see the item. Prefill of a resumed generation is hidden."""
        if isinstance(item, Prefill):
            return not self._generated
        self._count += item.token_count
        self._pieces.append(item)
        self.finished = item.finish_reason is not None
        return True

    def end_early(self) -> Piece | None:
        """The last piece of what was interrupted and cannot go on: the others need its room."""
        if self.finished or not self.stay.interrupted or not self.stay.can_end:
            return None
        self.finished = True
        return Piece(finish_reason="length")

    def goes_on_alone(self) -> bool:
        """Whether it can be resumed alone, once: it then waits until it has all the room."""
        if not self.stay.can_pause:
            return False
        self.stay.can_pause, self.stay.most = False, self._context
        return True

    async def fill_in_ids(self, encode: Callable[[PromptParts], Awaitable[list[int]]]) -> None:
        """Complete the ids after an interruption. The engine reports only the last id of a character of several ids."""
        for piece in self._pieces:
            exact = len(piece.token_ids) == piece.token_count
            self._generated += piece.token_ids if exact else await encode([piece.text])
        self._pieces.clear()
        self.stay.used = len(self.token_ids)
