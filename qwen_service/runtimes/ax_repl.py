"""Runtime of main_axcl_* and main_ax650 of Qwen2.5: a REPL that is given a key per line and asks us for the rest.

A prompt travels as a key on stdin, which the program hands to our tokenizer server for ids; a reply arrives as the
ids that it has decoded there. The prompt is fed token by token, as slowly as a reply is written. A reply is stopped by
SIGINT, repeated until the program waits again, since one that comes too early is lost.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from qwen_service.chat import Sampling
from qwen_service.errors import ProtocolError, RuntimeFailure, Stalled
from qwen_service.runtimes.base import Capabilities, Limits, LoadProgress, Piece, Prefill, Prompt, Runtime
from qwen_service.runtimes.repl_process import ReplProcess, ReplProgram
from qwen_service.runtimes.repl_reply import ReplReply
from qwen_service.runtimes.token_channel import ChannelEvent, Decoded, Encoded, Idle, Lost, TokenChannel
from qwen_service.runtimes.tokenizer_server import TokenizerServer
from qwen_service.tokenizer import LocalTokenizer

CONTEXT = 1024  # tokens; of the published build, where the program does not report it
SLOWEST_PROMPT = 10.0  # tokens per second; a card feeds about 15
INTERRUPT_EVERY = 0.02  # seconds
END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|im_start|>")


class AxRepl(Runtime):
    """`server` runs, and serves this program only: calls of the plain dialect do not say whose they are."""

    capabilities = Capabilities(sampling=frozenset({"max_tokens"}))

    def __init__(
        self, program: ReplProgram, tokenizer: LocalTokenizer, server: TokenizerServer, *, context: int = CONTEXT
    ) -> None:
        self._program = program
        self._tokenizer = tokenizer
        self._server = server
        self._context = context
        self._process = ReplProcess(program)
        self._resting: asyncio.Task[None] | None = None
        ends = {tokenizer.special_ids.get(token) for token in END_TOKENS} | {tokenizer.eos_id}
        self._end_ids = frozenset(id_ for id_ in ends if id_ is not None)

    async def start(self, progress: LoadProgress) -> Limits:
        try:
            reported = await self._process.start({"tokenizer_url": self._server.url}, progress)
        except BaseException:
            await self.stop()
            raise
        self._context = reported.get("max_token_len", self._context)
        return Limits(context=self._context, prompt=self._context - 1)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        await self._at_rest()
        ids = prompt.token_ids
        room = self._context - len(ids)
        reply = ReplReply(self._tokenizer.decoder(), end_ids=self._end_ids, max_tokens=sampling.max_tokens, room=room)
        channel = self._server.prompt(ids)
        self._process.submit(channel)
        try:
            while not reply.ended:
                fed = 0 if reply.ids else len(ids) / SLOWEST_PROMPT
                event = await self._next(channel, self._program.stall_timeout + fed)
                if isinstance(event, Encoded):
                    yield Prefill(len(ids), 0, 0)
                elif (piece := self._piece(event, reply)) is not None:
                    yield piece
        finally:
            self._resting = asyncio.create_task(self._come_to_rest(channel, reply))
            await asyncio.shield(self._resting)

    async def failed(self) -> RuntimeFailure:
        return await asyncio.shield(self._process.failure)

    async def stop(self) -> None:
        await self._process.stop()

    async def _at_rest(self) -> None:
        if self._resting is not None:
            await asyncio.shield(self._resting)
        if self._process.failure.done():
            raise self._process.failure.result()

    def _piece(self, event: ChannelEvent, reply: ReplReply) -> Piece | None:
        try:
            match event:
                case Decoded(call):
                    return reply.feed(call)
                case Idle():
                    return reply.finish()
                case Lost(error):
                    raise error
                case _:
                    return None
        except ProtocolError as failure:
            raise self._process.fail(failure) from None

    async def _next(self, channel: TokenChannel, patience: float) -> ChannelEvent:
        try:
            return await asyncio.wait_for(channel.next(), patience)
        except TimeoutError:
            raise self._process.fail(Stalled(f"The NPU has given no sign of life for {patience:.0f} s.")) from None

    async def _come_to_rest(self, channel: TokenChannel, reply: ReplReply) -> None:
        """Return when the program waits for a prompt again, or is lost."""
        with channel:
            try:
                async with asyncio.timeout(self._program.stop_timeout):
                    while not (self._process.idle or self._process.failure.done()):
                        if not reply.over:
                            self._process.interrupt()
                        with suppress(TimeoutError):
                            await asyncio.wait_for(channel.next(), INTERRUPT_EVERY)
            except TimeoutError:
                self._process.fail(Stalled(f"The runtime does not stop within {self._program.stop_timeout:g} s."))
