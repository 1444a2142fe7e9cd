"""Runtime of Qwen2.5's main_axcl_* and main_ax650: a REPL that takes one key per line and asks us for the ids.

A prompt travels as a key on stdin, which the program hands to our tokenizer server for ids; a reply arrives as the
ids that it decodes there. The program prefills token by token, as slowly as it generates. A reply is stopped by
SIGINT while the program waits for our answer to a /decode. During the prefill SIGINT is repeated until
the program waits again, because one that comes too early is lost.

The context builds (Qwen3) keep their KV cache from prompt to prompt and get only the new ids. They have no way
back: a prompt that does not continue their cache needs a new process, which takes as long as loading.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import replace

from qwen_service.chat import Sampling
from qwen_service.errors import ProtocolError, RuntimeFailure, Stalled, StartFailed
from qwen_service.runtime import Capabilities, HeldIds, Limits, LoadProgress, Piece, Prefill, Prompt, Runtime
from qwen_service.runtimes.axera.channel import ChannelEvent, Decoded, Encoded, Idle, Lost, TokenChannel
from qwen_service.runtimes.axera.kv_cache import Ids, KvCache, Plan, Stop, held_after
from qwen_service.runtimes.axera.log import reported_limits
from qwen_service.runtimes.axera.repl_process import ReplProcess, ReplProgram
from qwen_service.runtimes.axera.reply import AxeraReply
from qwen_service.runtimes.axera.tokenizer_server import TokenizerServer
from qwen_service.text.tokenizer import LocalTokenizer

CONTEXT = 1024  # tokens; the published build's, when the program reports none
SLOWEST_PROMPT = 10.0  # tokens per second; a card feeds about 15
INTERRUPT_EVERY = 0.02  # seconds
LONGEST_HOLD = 0.7  # seconds that an answer may wait for a stop; the program's client waits 1 s
RELUCTANT = 3.0  # seconds without a batch (usual: 0.2 to 0.8) after which a stop is tried at any moment
CONTEXT_FLAG = "--url_tokenizer_model"  # a flag of the context builds only
END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|im_start|>")

SAMPLING = frozenset({"max_tokens"})  # all other sampling is fixed when the program starts


class AxRepl(Runtime):
    """The runtime. `server` serves this program only: calls of the plain dialect do not say who makes them."""

    def __init__(
        self, program: ReplProgram, tokenizer: LocalTokenizer, server: TokenizerServer, *, context: int = CONTEXT
    ) -> None:
        self._program = program
        self._tokenizer = tokenizer
        self._server = server
        self._limits = Limits(context=context, prompt=context - 1)
        self._process = ReplProcess(program)
        self._resting: asyncio.Task[None] | None = None
        ends = {tokenizer.special_ids.get(token) for token in END_TOKENS} | {tokenizer.eos_id}
        self._end_ids = frozenset(id_ for id_ in ends if id_ is not None)
        keeps_context = CONTEXT_FLAG in program.command({"tokenizer_url": server.url, "system_prompt": ""})
        self._kv = KvCache(context) if keeps_context else None
        self.capabilities = Capabilities(sampling=SAMPLING)

    async def start(self, progress: LoadProgress) -> Limits:
        opening = (self._tokenizer.special_ids.get("<|im_start|>", 0),)  # how every conversation begins
        try:
            reported = await self._load(opening, progress)
        except BaseException:
            await self.stop()
            raise
        context = reported.get("max_token_len", self._limits.context)
        self._limits = reported_limits(reported, Limits(context, context - 1))
        if self._kv is not None:
            self._kv = KvCache(self._limits.prompt)
            self._kv.reset_to(opening)
        return self._limits

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        await self._at_rest()
        ids = prompt.token_ids
        plan = await self._prepare(ids)
        room = self._limits.context - len(ids)
        reply = AxeraReply(self._tokenizer.decoder(), end_ids=self._end_ids, most=sampling.max_tokens, room=room)
        channel = self._server.prompt(ids, plan.diff, longest_hold=LONGEST_HOLD)
        if sampling.max_tokens is not None:
            channel.gate.stop_after(sampling.max_tokens)
        stop = Stop()
        self._process.submit(channel)
        try:
            while not reply.ended:
                fed = 0 if reply.ids else len(plan.diff) / SLOWEST_PROMPT
                event = await self._next(channel, self._program.stall_timeout + fed)
                if isinstance(event, Encoded):
                    yield Prefill(len(ids), plan.cached)
                elif (piece := self._piece(event, channel, reply, stop)) is not None:
                    yield replace(piece, finish_reason=None)
        finally:
            self._resting = asyncio.create_task(self._come_to_rest(ids, channel, reply, stop))
            await asyncio.shield(self._resting)
        self._refuse_false_tokens()
        yield Piece(finish_reason=reply.finish_reason)

    async def failed(self) -> RuntimeFailure:
        while True:
            process = self._process
            failure = await asyncio.shield(process.failure)
            if process is self._process:  # otherwise it was replaced on purpose
                return failure

    async def stop(self) -> None:
        await self._process.stop()

    def reusable_tokens(self, prompt: Prompt) -> int:
        return self._kv.reusable(prompt.token_ids) if self._kv is not None else 0

    def held_ids(self) -> list[HeldIds]:
        return [HeldIds(self._kv.held)] if self._kv is not None and self._kv.held else []

    async def _load(self, opening: Ids, progress: LoadProgress) -> Mapping[str, int]:
        with self._server.reset(opening) as channel:
            values = {"tokenizer_url": self._server.url, "system_prompt": channel.key}
            reported = await self._process.start(values, progress)
            if self._kv is not None:
                await self._process.expect_reset(channel)
        return reported

    async def _prepare(self, ids: Ids) -> Plan:
        """Replace the process of a context build when the prompt does not continue its cache, which it cannot reset."""
        if self._kv is None:
            return Plan((), ids, 0)
        plan = self._kv.plan(ids)
        self._kv.invalidate()
        if plan.reset:
            old, self._process = self._process, ReplProcess(self._program)
            await old.stop()
            try:
                await self._load(plan.reset, lambda _: None)
            except StartFailed as failure:
                raise self._process.fail(failure) from None
        return plan

    async def _at_rest(self) -> None:
        if self._resting is not None:
            await asyncio.shield(self._resting)
        if self._process.failure.done():
            raise self._process.failure.result()

    def _piece(self, event: ChannelEvent, channel: TokenChannel, reply: AxeraReply, stop: Stop) -> Piece | None:
        try:
            match event:
                case Decoded(held=True):
                    self._stop_held(channel, stop)
                case Idle():
                    reply.tokens.refuse_early_end()
                case Lost(error):
                    raise error
            return reply.feed(event)
        except ProtocolError as failure:
            raise self._process.fail(failure) from None

    def _refuse_false_tokens(self) -> None:
        """Raise the program's ProtocolError, if it has one. An error of the NPU is printed only after the false tokens were decoded."""
        if self._process.failure.done() and isinstance(failure := self._process.failure.result(), ProtocolError):
            raise failure

    async def _next(self, channel: TokenChannel, patience: float) -> ChannelEvent:
        try:
            async with asyncio.timeout(patience):
                return await channel.next()
        except TimeoutError:
            raise self._process.fail(Stalled(f"The NPU has given no sign of life for {patience:.0f} s.")) from None

    def _stop_held(self, channel: TokenChannel, stop: Stop) -> None:
        """Stop the program while it waits for the held answer: it then handles the signal first."""
        self._process.interrupt()
        if channel.gate.release():
            stop.exactly_after = channel.gate.held
        else:
            stop.loosely = True

    async def _come_to_rest(self, ids: Ids, channel: TokenChannel, reply: AxeraReply, stop: Stop) -> None:
        """Wait until the program waits for a prompt again, or is lost."""
        with channel:
            try:
                async with asyncio.timeout(self._program.stop_timeout):
                    await self._until_idle(channel, reply, stop)
            except TimeoutError:
                self._process.fail(Stalled(f"The runtime does not stop within {self._program.stop_timeout:g} s."))
            except RuntimeFailure as failure:
                self._process.fail(failure)
        if self._kv is not None and not self._process.failure.done():
            # A stop right after the prefill: what the cache then holds is not known for any version.
            held = held_after(ids, reply.tokens, stop, after_stopped_prefill=None)
            if held is not None:
                self._kv.hold(held)

    async def _until_idle(self, channel: TokenChannel, reply: AxeraReply, stop: Stop) -> None:
        channel.gate.stop_at_next()
        now = asyncio.get_running_loop().time
        patient_until = now() + RELUCTANT if reply.tokens.ids else 0.0
        while not (reply.tokens.finished or self._process.failure.done()):
            if not reply.tokens.ended and now() > patient_until:
                stop.loosely = True
                self._process.interrupt()
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERRUPT_EVERY):
                    event = await channel.next()
                    self._piece(event, channel, reply, stop)
                    patient_until = now() + RELUCTANT if isinstance(event, Decoded) else patient_until
