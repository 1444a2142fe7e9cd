"""Runtime of main_api_ax650 and main_api_axcl_*: Qwen3-4B on an Axera NPU, exact multi-turn with KV reuse.

The program asks our tokenizer server for the ids of every prompt and hands it every id it generates. So a prompt
travels as a key, a reply arrives on a token channel, and what the KV cache holds is known id for id: a prompt that
continues it is prefilled from there; any other needs a reset. A stop waits for the program's next /decode and is exact
then. After an inexact stop or an error the content of the cache is unknown, and the next prompt resets it.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from qwen_service.chat import Sampling
from qwen_service.errors import PromptTooLong, ProtocolError, RuntimeFailure, Stalled
from qwen_service.runtime import Capabilities, HeldIds, Limits, LoadProgress, Piece, Prefill, Prompt, Runtime
from qwen_service.runtimes.axera.api_client import EngineBusy
from qwen_service.runtimes.axera.api_engine import REFUSAL, AxApiEngine, Work
from qwen_service.runtimes.axera.channel import Decoded, Idle
from qwen_service.runtimes.axera.kv_cache import CHUNK, Ids, KvCache, Plan, held_after
from qwen_service.runtimes.axera.log import reported_limits
from qwen_service.runtimes.axera.program import AxeraProgram
from qwen_service.runtimes.axera.reply import AxeraReply
from qwen_service.runtimes.axera.tokenizer_server import TokenizerServer
from qwen_service.text.tokenizer import LocalTokenizer

LIMITS = Limits(context=2559, prompt=2048)  # the limits of the published builds of Qwen3-4B
OPENING = "<|im_start|>"  # the first token of every conversation with Qwen
ATTEMPTS = 3  # tries, when somebody else uses the engine, too


@dataclass(frozen=True, slots=True)
class _Begun:
    """`before`: what the KV cache holds if the prefill is stopped; None: not known."""

    work: Work
    plan: Plan
    before: Ids | None


class AxApi(Runtime):
    capabilities = Capabilities(
        sampling=frozenset({"max_tokens", "temperature", "top_p", "top_k", "repeat_penalty"}),
        warms="all",
    )

    def __init__(
        self,
        program: AxeraProgram,
        tokenizer: LocalTokenizer,
        server: TokenizerServer,
        *,
        expected: Limits = LIMITS,
        opening: Ids = (),
    ) -> None:
        """`server` is running and may serve other programs, too. `expected`: the limits if the program reports none.

        `opening`: ids that conversations begin with (a system prompt); prefilled at the start, so that the first
        one is a continuation already.
        """
        self._tokenizer = tokenizer
        self._server = server
        self._foreign_calls = server.foreign_calls
        self._engine = AxApiEngine(program, server)
        self._limits = expected
        self._kv = KvCache(expected.prompt)
        self._opening = opening or (tokenizer.special_ids.get(OPENING, 0),)

    async def start(self, progress: LoadProgress) -> Limits:
        reported = await self._engine.start(progress, self._opening)
        self._limits = reported_limits(reported, self._limits)
        # A limit that the program has not reported might be wrong, and only a diff after something is checked.
        sure = self._limits.prompt if "prefill_max_token_num" in reported else CHUNK
        self._kv = KvCache(self._limits.prompt, from_nothing=sure)
        self._kv.reset_to(self._opening)
        self._foreign_calls = self._server.foreign_calls
        return self._limits

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        ids = prompt.token_ids
        room = self._limits.context - len(ids)
        budget = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        eos = self._tokenizer.eos_id
        reply = AxeraReply(self._tokenizer.decoder(), end_ids=() if eos is None else (eos,), most=budget)
        begun = await self._begin(ids, sampling, most=budget)
        try:
            yield Prefill(len(ids), begun.plan.cached)
            while not reply.ended:
                if (piece := await self._next_piece(begun.work, reply)) is not None:
                    yield piece
        finally:
            await self._come_to_rest(begun, ids, reply)

    async def failed(self) -> RuntimeFailure:
        return await self._engine.failed()

    async def stop(self) -> None:
        await self._engine.stop()

    async def warm(self, prompt: Prompt) -> bool:
        """Prefill by a reset, which takes ids without a reply. Once begun, it cannot be stopped."""
        ids = prompt.token_ids
        if not 0 < len(ids) <= self._limits.prompt - CHUNK:  # it must leave room for a question
            return False
        self._invalidate_after_foreign_calls()
        self._kv.invalidate()
        try:
            await self._engine.reset(ids)
        except EngineBusy:
            return False
        if self._server.foreign_calls != self._foreign_calls:
            return False
        self._kv.reset_to(ids)
        return True

    def reusable_tokens(self, prompt: Prompt) -> int:
        self._invalidate_after_foreign_calls()
        return self._kv.reusable(prompt.token_ids)

    def held_ids(self) -> list[HeldIds]:
        self._invalidate_after_foreign_calls()
        return [HeldIds(self._kv.held)] if self._kv.held else []

    async def _begin(self, ids: Ids, sampling: Sampling, *, most: int) -> _Begun:
        for _ in range(ATTEMPTS):
            self._invalidate_after_foreign_calls()
            plan = self._kv.plan(ids)
            before = self._kv.after_stopped_prefill if plan.reset is None else None
            self._kv.invalidate()
            try:
                if plan.reset is not None:
                    await self._engine.reset(plan.reset)
                work = await self._engine.generate(ids, plan.diff, sampling, most=most)
            except EngineBusy:
                await self._engine.until_idle()
                continue
            if await self._runs_as_planned(work):
                return _Begun(work, plan, before)
        raise Stalled("Other programs keep the vendor's program busy. Close its port (runtime_port) to them.")

    async def _runs_as_planned(self, work: Work) -> bool:
        """Whether the work runs on the planned cache. False: somebody else's work came just before; ours is then ended."""
        undisturbed = False
        try:
            await self._engine.next(work)  # it has fetched its prompt
            undisturbed = self._server.foreign_calls == self._foreign_calls
        finally:
            if not undisturbed:
                await self._engine.finish(work)
        return undisturbed

    async def _come_to_rest(self, begun: _Begun, ids: Ids, reply: AxeraReply) -> None:
        work, tokens = begun.work, reply.tokens
        try:
            await self._engine.finish(work, reply.overhear, stop=not tokens.ended)
        finally:
            held = held_after(ids, tokens, work.stop, after_stopped_prefill=begun.before)
            if held is not None and not self._engine.failure.done():
                self._kv.hold(held)

    def _invalidate_after_foreign_calls(self) -> None:
        if self._server.foreign_calls != self._foreign_calls:
            self._foreign_calls = self._server.foreign_calls
            self._kv.invalidate()

    async def _next_piece(self, work: Work, reply: AxeraReply) -> Piece | None:
        event = await self._engine.next(work, ending=reply.tokens.undecided)
        if isinstance(event, Idle) and not reply.ids:
            if REFUSAL in work.said:  # the program lives on, and takes the next prompt after a reset
                raise PromptTooLong(
                    f"The engine has no room for this prompt. The vendor's program says: {work.said}", param="messages"
                )
            raise ProtocolError(f"The vendor's program gave no reply. It says: {work.said or 'nothing'}")
        piece = reply.feed(event)
        if isinstance(event, Decoded) and event.held:
            await self._engine.stop_held(work)
        return piece
