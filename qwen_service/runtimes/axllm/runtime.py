"""Runtime of `axllm serve DIR`, started by us or joined: an OpenAI-like server for one request at a time.

This module corrects its faults. Overlapping requests mix their streams, and a client that leaves does not stop
the NPU: so each stream is read to its end, even when its client has left, and the next request waits for that.
Limits, counts and finish reasons are ours. The text, with its think block, is passed on as the model wrote it.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from qwen_service.chat import IMAGE_TOKENS, ChatRequest, Message, Sampling
from qwen_service.errors import (
    Died,
    InvalidRequest,
    PromptTooLong,
    QueueTimeout,
    RuntimeFailure,
    Stalled,
    StartFailed,
    Unsupported,
)
from qwen_service.recent import put_recent
from qwen_service.runtime import Capabilities, Limits, LoadProgress, Piece, Prefill, Prompt, Runtime
from qwen_service.runtimes.axera.log import reported_limits
from qwen_service.runtimes.axera.program import AxeraProcess, AxeraProgram, refuse_taken_port
from qwen_service.runtimes.axllm.client import AxLlmClient, HungUp
from qwen_service.runtimes.axllm.reply import AxLlmReply
from qwen_service.runtimes.axllm.slots import STEP, Conversations, Ids, Place, SlotLog, marked
from qwen_service.runtimes.axllm.wire import AxLlmStream, request_body, shown
from qwen_service.text.tokenizer import LocalTokenizer

log = logging.getLogger(__name__)

LIMITS = Limits(context=2048, prompt=1024)  # the defaults when neither its log nor the manifest says
PREFILL = 0.05  # seconds for an id of the prompt that is not cached, at most; a card needs a fifth of it
LAST_WORDS = 2.0  # seconds: a program that closes its connection may be exiting
LITTLE = 32.0  # warming may overwrite so many ids of another conversation
REMEMBERED = 64  # replies to pictures
LOOK_EVERY = 10.0  # seconds between checks of a server that we did not start
LOOKS = 3  # failed checks after which it counts as gone

Texts = asyncio.Queue[str | None]  # None: the stream is over


class AxLlm(Runtime):
    capabilities = Capabilities(sampling=frozenset({"max_tokens", "temperature", "top_p", "top_k"}), warms="all")

    def __init__(
        self,
        program: AxeraProgram,
        tokenizer: LocalTokenizer | None = None,
        *,
        expected: Limits = LIMITS,
        join: bool = False,
        slots: SlotLog | None = None,
    ) -> None:
        """`tokenizer`: the one of the model's folder, if it has one. `join`: use the server that runs on program.port.

        `slots`: reads the program's messages about its KV cache.
        """
        self._program = program
        self._tokenizer = tokenizer
        self._limits = expected
        self._join = join
        self._client = AxLlmClient(program.port)
        self._process = AxeraProcess(program)
        self._slots = slots or SlotLog()
        self._kept = Conversations()
        self._slot_of: dict[int, int] = {}  # axllm's slot number -> ours
        self._model = ""
        self._said: OrderedDict[str, str] = OrderedDict()  # replies to pictures: text as shown -> text as written
        self._reading: asyncio.Task[bool] | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self, progress: LoadProgress) -> Limits:
        try:
            await self._find(progress)
        except BaseException:
            await self.stop()
            raise
        self._kept = Conversations(self._slots.made.count)
        self._limits = reported_limits(self._process.log.numbers, self._limits)
        return self._limits

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        max_tokens = self._room(prompt, sampling)
        await self._at_rest()
        texts: Texts = asyncio.Queue()
        place = self._kept.place(prompt.token_ids)
        body = request_body(self._model, marked(prompt.request, place.slot), sampling, max_tokens, self._said)
        stream = AxLlmStream()
        reading = self._begin_reading(body, texts, stream, place.lacks)
        reply = AxLlmReply(self._tokenizer, max_tokens)
        try:
            while not reply.ended and (text := await texts.get()) is not None:
                if (prefill := self._taken(prompt)) is not None:
                    yield prefill
                if (piece := reply.feed(text)) is not None:
                    yield self._noted(piece, prompt, reply, stream)
            if not reply.ended:
                yield self._noted(reply.finish(cut=not await _outcome(reading)), prompt, reply, stream)
        finally:
            self._hold(place.slot, prompt.token_ids, reply.ids)

    def still_running(self) -> asyncio.Future[bool] | None:
        return self._reading if self._reading is not None and not self._reading.done() else None

    async def warm(self, prompt: Prompt) -> bool:
        """Prefill by a chat of one token. Once begun it cannot be stopped, and goes on when the caller is cancelled."""
        request = prompt.request if prompt.request.messages else self._spoken(prompt.token_ids)
        place = self._kept.place(prompt.token_ids, in_a_hurry=False)
        if request is None or self.still_running() is not None or not self._is_worth_warming(prompt, place):
            return False
        await self._at_rest()
        body = request_body(self._model, marked(request, place.slot), Sampling(), 1, self._said)
        try:
            await _outcome(self._begin_reading(body, asyncio.Queue(), AxLlmStream(), place.lacks))
        except (InvalidRequest, QueueTimeout) as refusal:  # the program lives on
            log.info("axllm refused to prefill: %s", refusal.message)
            return False
        self._hold(place.slot, prompt.token_ids, ())
        return True

    def warming_loses(self, prompt: Prompt) -> float:
        return self._kept.place(prompt.token_ids, in_a_hurry=False).loses

    def reusable_tokens(self, prompt: Prompt) -> int:
        """Count the reusable ids; 0 when another conversation would be overwritten."""
        place = self._kept.place(prompt.token_ids)
        return place.shared if place.loses < LITTLE or self._slots.made.count == 1 else 0

    def _is_worth_warming(self, prompt: Prompt, place: Place) -> bool:
        """Whether the prompt leaves room for a question, and would be reused by it."""
        size = len(prompt.token_ids)
        several = self._slots.made.count > 1
        return 0 < size <= self._limits.prompt - STEP and place.lacks > 0 and (size > STEP or not several)

    def _spoken(self, ids: Ids) -> ChatRequest | None:
        """Make a request that begins with these ids of a system message, as Qwen's template writes it."""
        if self._tokenizer is None:
            return None
        special = self._tokenizer.special_ids
        start, end = special.get("<|im_start|>"), special.get("<|im_end|>")
        if start is None or end not in ids or ids[0] != start:
            return None
        role, _, text = self._tokenizer.decode_now(ids[1 : ids.index(end)]).partition("\n")
        messages = (Message("system", text), Message("user", "a"))
        return ChatRequest("warming", messages=messages) if role == "system" else None

    async def failed(self) -> RuntimeFailure:
        return await asyncio.shield(self._process.failure)

    async def stop(self) -> None:
        for task in (self._looking, self._reading):  # first: what axllm sends while it is stopped is no end of a reply
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        await self._process.end()

    def _begin_reading(
        self, body: dict[str, Any], texts: Texts, stream: AxLlmStream, lacking: int
    ) -> asyncio.Task[bool]:
        self._slots.taken = None
        self._reading = reading = asyncio.create_task(self._read(body, texts, stream, lacking))
        # The exception is read here, because the reader of the texts may have left.
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return reading

    def _taken(self, prompt: Prompt) -> Prefill | None:
        """Read, once, how much of the prompt axllm held. With pictures axllm counts messages."""
        taken = self._slots.taken
        if taken is None or taken.told or prompt.spelled:
            return None
        self._slots.taken = replace(taken, told=True)
        size = len(prompt.token_ids)
        return Prefill(size, min(taken.shared, max(0, size - taken.fresh)))

    def _hold(self, slot: int, prompt: Ids, reply: Ids) -> None:
        """Note the slot that axllm took by its log: the content that we assumed in it is gone."""
        if (taken := self._slots.taken) is not None:
            before = self._slot_of.get(taken.slot, slot)
            if before != slot:
                self._kept.forget(before)
            self._slot_of[taken.slot] = slot
        self._kept.hold(slot, prompt, reply)

    def _noted(self, piece: Piece, prompt: Prompt, reply: AxLlmReply, stream: AxLlmStream) -> Piece:
        """Complete the last piece of a reply to pictures: the engine alone counts their tokens, and later needs its own text back."""
        if not reply.ended or not any(message.images for message in prompt.request.messages):
            return piece
        put_recent(self._said, shown(reply.text), reply.text, REMEMBERED)
        return replace(piece, prompt_tokens=stream.prompt_tokens)

    async def _find(self, progress: LoadProgress) -> None:
        if self._join:
            if not await self._answers():
                raise StartFailed(
                    f"No axllm with a model answers on port {self._program.port} (runtime_port). Start it."
                )
            self._looking = asyncio.create_task(self._look())
        else:
            await refuse_taken_port(self._program.port)
            await self._process.launch({"port": str(self._program.port)}, progress)
            await self._process.until(self._answers)

    async def _answers(self) -> bool:
        self._model = await self._client.model() or self._model
        return bool(self._model)

    async def _look(self) -> None:
        missed = 0
        while missed < LOOKS:
            await asyncio.sleep(LOOK_EVERY)
            missed = 0 if await self._client.model() else missed + 1
        self._process.fail(Died(f"The axllm on port {self._program.port} no longer answers."))

    def _room(self, prompt: Prompt, sampling: Sampling) -> int:
        """The most tokens of the reply; axllm always gets a bound."""
        if prompt.request.prompt is not None:
            raise Unsupported("This model runs on axllm, which takes no raw prompt. Send messages.", param="prompt")
        if prompt.request.continues:
            raise Unsupported(
                "This model runs on axllm, which cannot continue a message. End with one of the user.", param="messages"
            )
        pictures = sum(len(message.images) for message in prompt.request.messages)
        room = self._limits.context - len(prompt.token_ids) - IMAGE_TOKENS * pictures
        if room < 1:
            raise PromptTooLong(
                f"The prompt has {len(prompt.token_ids)} tokens; the context takes {self._limits.context}."
            )
        return room if sampling.max_tokens is None else min(sampling.max_tokens, room)

    async def _at_rest(self) -> None:
        if self._reading is not None:
            await asyncio.wait({self._reading})
        if self._process.failure.done():
            raise self._process.failure.result()

    async def _read(self, body: dict[str, Any], texts: Texts, stream: AxLlmStream, lacking: int) -> bool:
        """Read a whole stream, even if its client has left. True: the model ended it; False: axllm's time limit did.

        `lacking`: ids of the prompt that its KV cache probably lacks. While axllm computes them it says nothing.
        """
        patience = self._program.stall_timeout
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(patience + PREFILL * lacking) as deadline,
                aclosing(self._client.chat(body, patience=patience / 2)) as chat,
            ):
                begun = False
                async for data in chat:
                    text = stream.feed(data)
                    if begun := begun or bool(text):  # a first chunk without text may come before the prefill
                        deadline.reschedule(loop.time() + patience)
                    texts.put_nowait(text)
            if not stream.ended:
                raise HungUp("axllm's stream ended before the reply did.")
        except TimeoutError:
            raise self._process.fail(Stalled(f"axllm has given no sign of life for {patience:g} s.")) from None
        except HungUp:
            if await self._process.ends_within(LAST_WORDS):  # its exit explains more
                raise self._process.failure.result() from None
            raise
        finally:
            texts.put_nowait(None)
        return stream.finished


async def _outcome(reading: asyncio.Task[bool]) -> bool:
    await asyncio.wait({reading})
    if reading.cancelled():
        raise Died("axllm was stopped.")
    return reading.result()
