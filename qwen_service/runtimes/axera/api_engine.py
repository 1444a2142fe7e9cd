"""Drives main_api_* one piece of work at a time: reset or generate. It knows nothing of replies.

A piece of work is queued by an HTTP call that returns at once. It has begun when the program asks our tokenizer
server for its ids, and is over when the program says that it is done. Before it has begun, "done" means nothing and
a stop is lost. The program gets no other work until it is over, even when the client has left.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qwen_service.chat import Sampling
from qwen_service.errors import Died, ProtocolError, RuntimeFailure, Stalled, StartFailed
from qwen_service.process.child import ChildProcess
from qwen_service.runtime import LoadProgress
from qwen_service.runtimes.axera.api_client import AxApiClient, EngineBusy
from qwen_service.runtimes.axera.channel import ChannelEvent, Decoded, Encoded, Idle, Lost, ResetCalled, TokenChannel
from qwen_service.runtimes.axera.kv_cache import Ids, Stop
from qwen_service.runtimes.axera.program import AxeraProcess, AxeraProgram, listens, refuse_taken_port
from qwen_service.runtimes.axera.tokenizer_server import TokenizerServer

READY = "Server running on port"
REFUSAL = "SetKVCache failed"  # printed when its limits are lower than those that we know
POLL = 0.25  # seconds between polls of a silent program; a batch of tokens takes 0.7 s
LISTENS = 5.0  # seconds from its ready line until it listens
SETTLE = 0.02  # seconds between polls of a program that is about to be idle; it stops within a step of 0.25 s
LAST_WORDS = 2.0  # seconds: a program that closes its connection may be exiting
RELUCTANT = 1.0  # seconds from an exact stop to the next one; the program usually stops at once

T = TypeVar("T")
Heard = Callable[[ChannelEvent], bool]  # True: the reply is over, the program will be idle in a moment


@dataclass(eq=False, slots=True)
class Work:
    channel: TokenChannel
    queued: bool = False
    begun: bool = False
    said: str = ""  # the program's own messages, such as a refusal
    refused: float = 0.0  # time at which it refused the prompt
    decodes: bool = False  # part of its reply has come
    stop: Stop = field(default_factory=Stop)


class AxApiEngine:
    """The engine. `failure` is set once, when it cannot be used any more; every call then raises it."""

    def __init__(self, program: AxeraProgram, server: TokenizerServer) -> None:
        self._server = server
        self._port = program.port
        self._patience = program.stall_timeout
        self._client = AxApiClient(program.port)
        self._process = AxeraProcess(program)
        self._work: Work | None = None
        self._unfinished: asyncio.Task[None] | None = None
        self.failure = self._process.failure
        self.failure.add_done_callback(self._tell_work)

    async def start(self, progress: LoadProgress, opening: Ids) -> Mapping[str, int]:
        """Load, and prefill `opening`, because the program has no state before its first reset. Returns its reported limits."""
        try:
            await self._load(progress, opening)
            await self._first_prefill(opening)
        except BaseException:
            await self.stop()
            raise
        return self._process.log.numbers

    async def stop(self) -> None:
        """Stop the program. A running reply gets its error first, because a stop within a step leaves a false last token."""
        if self._work is not None:
            self._work.channel.post(Lost(Died("The service has stopped the vendor's program.")))
        await self._process.end(self._ask_to_end)

    async def reset(self, ids: Ids) -> None:
        """Make `ids` all that the KV cache holds. EngineBusy when work runs that is not ours."""
        await self._to_its_end(self._reset(ids))

    async def generate(self, prompt: Ids, diff: Ids, sampling: Sampling, *, most: int) -> Work:
        """Queue a generation; next() gives its events, finish() must follow. Raises EngineBusy when somebody else's work runs.

        The answer to the batch that completes `most` ids is held: call stop_held() then.
        """
        work = self._new_work(self._server.prompt(prompt, diff))
        work.channel.gate.stop_after(most)
        try:
            await self._to_its_end(self._queue(work, self._client.generate(work.channel.key, sampling)))
        except BaseException:
            await self.finish(work)
            raise
        return work

    async def next(self, work: Work, *, ending: bool = False) -> ChannelEvent:
        """Wait for the next event; Idle is the last. Raises a RuntimeFailure. `ending`: Idle is expected."""
        return await self._in_time(
            self._next(work, SETTLE if ending else POLL), "The NPU has given no sign of life for"
        )

    async def stop_held(self, work: Work) -> None:
        """Stop the program while it waits for the answer that the gate holds, then let it have the answer."""
        await self._to_its_end(self._stop_held(work))

    async def finish(self, work: Work, heard: Heard = lambda _: False, *, stop: bool = True) -> None:
        """Wait until the program is idle or has failed. With `stop`, it is stopped first.

        `heard` is called with the events until then, including Idle.
        """
        await self._to_its_end(self._finish(work, heard, stop=stop))

    async def failed(self) -> RuntimeFailure:
        return await asyncio.shield(self.failure)

    async def until_idle(self) -> None:
        """Wait for the end of somebody else's work."""
        work = Work(self._server.prompt(()), queued=True)
        with work.channel:
            await self._in_time(self._until_done(work), "The runtime has been busy with work that is not ours for")

    def _new_work(self, channel: TokenChannel) -> Work:
        self._work = Work(channel)
        if self.failure.done():
            self._tell_work(self.failure)
        return self._work

    def _tell_work(self, failure: asyncio.Future[RuntimeFailure]) -> None:
        if self._work is not None:
            self._work.channel.post(Lost(failure.result()))

    async def _to_its_end(self, step: Coroutine[Any, Any, None]) -> None:
        """Run a step after the previous one, and finish it even when the caller is cancelled: the caller waits."""
        task = asyncio.create_task(self._after(self._unfinished, step))
        # The exception is read here, because the caller may have left.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._unfinished = task
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise

    async def _after(self, before: asyncio.Task[None] | None, step: Coroutine[Any, Any, None]) -> None:
        if before is not None:
            await asyncio.wait({before})
        await step

    async def _reset(self, ids: Ids) -> None:
        work = self._new_work(self._server.reset(ids))
        with work.channel:
            await self._queue(work, self._client.reset(work.channel.key))
            await self.next(work)
            await self._in_time(self._until_done(work), "The NPU has given no sign of life for")

    async def _queue(self, work: Work, call: Coroutine[Any, Any, None]) -> None:
        await self._ask(call)
        work.queued = True

    async def _next(self, work: Work, poll: float = POLL) -> ChannelEvent:
        while True:
            try:
                async with asyncio.timeout(poll):
                    event = await work.channel.next()
            except TimeoutError:
                if work.begun and await self._is_done(work):
                    work.channel.post(Idle())  # after the events posted meanwhile
                continue
            if isinstance(event, Lost):
                raise event.error
            work.begun = work.begun or isinstance(event, Encoded | ResetCalled)
            work.decodes = work.decodes or isinstance(event, Decoded)
            return event

    async def _stop_held(self, work: Work) -> None:
        if (count := work.channel.gate.held) is None:
            return
        await self._ask(self._client.stop())
        if work.channel.gate.release():
            work.stop.exactly_after = count
        else:
            work.stop.loosely = True

    async def _finish(self, work: Work, heard: Heard, *, stop: bool) -> None:
        with work.channel:
            try:
                await self._in_time(self._come_to_rest(work, heard, stop=stop), "The runtime has not stopped for")
            except RuntimeFailure as failure:
                self._process.fail(failure)

    async def _come_to_rest(self, work: Work, heard: Heard, *, stop: bool) -> None:
        over = False
        while work.queued and (not work.begun or work.channel.heard):
            over = await self._hear(work, heard)
        if stop and work.decodes and not over:
            work.channel.gate.stop_at_next()
            while work.queued and work.stop == Stop() and not over:
                over = await self._hear(work, heard)
        if over or work.stop != Stop():
            with suppress(TimeoutError):
                async with asyncio.timeout(RELUCTANT):
                    await self._until_done(work)
        await self._until_done(work, stop=stop)
        while work.channel.heard:
            heard(await self._next(work))
        heard(Idle())

    async def _hear(self, work: Work, heard: Heard) -> bool:
        event = await self._next(work)
        over = heard(event)
        if isinstance(event, Idle):
            work.queued = False
        if isinstance(event, Decoded) and event.held:
            await self._stop_held(work)
        return over

    async def _until_done(self, work: Work, *, stop: bool = False) -> None:
        pause = SETTLE / 8
        while work.queued and not await self._is_done(work):
            if stop:  # one stop may not be enough
                work.stop.loosely = True
                await self._ask(self._client.stop())
            await asyncio.sleep(pause)
            pause = min(2 * pause, SETTLE)
        work.queued = False

    async def _in_time(self, step: Coroutine[Any, Any, T], complaint: str) -> T:
        try:
            async with asyncio.timeout(self._patience):
                return await step
        except TimeoutError:
            raise self._process.fail(Stalled(f"{complaint} {self._patience:g} s.")) from None

    async def _is_done(self, work: Work) -> bool:
        provided = await self._ask(self._client.provider())
        work.said += provided.text
        now = asyncio.get_running_loop().time()
        if not provided.done and REFUSAL in work.said:
            work.refused = work.refused or now
            if now - work.refused > LAST_WORDS:  # some builds stay busy for ever after a refusal
                raise self._process.fail(
                    Stalled(f"The vendor's program is stuck after a refused prompt. It says: {work.said}")
                )
        return provided.done

    async def _load(self, progress: LoadProgress, opening: Ids) -> None:
        await refuse_taken_port(self._port)
        with self._server.reset(opening) as channel:
            values = {"tokenizer_url": self._server.url, "system_prompt": channel.key, "port": str(self._port)}
            await self._process.launch(values, progress, ready_text=READY)
            await self._process.until(lambda: self._is_up(channel))
            await self._process.expect_reset(channel)
        await self._expect_port()

    async def _first_prefill(self, opening: Ids) -> None:
        try:
            await self.reset(opening)
        except EngineBusy:
            raise StartFailed(
                f"The vendor's program came up, but another program was already using its port {self._port}."
            ) from None
        except RuntimeFailure as failure:
            raise StartFailed(
                f"The vendor's program came up, but its first prefill failed: {failure.message}"
            ) from failure

    async def _is_up(self, channel: TokenChannel) -> bool:
        """Whether it is up: by its ready line or by its port, since the line may stay in the buffer of stdout."""
        return self._process.log.ready or (channel.heard and await listens(self._port))

    async def _expect_port(self) -> None:
        """Wait until it listens, which it does only after its ready line."""
        try:
            async with asyncio.timeout(LISTENS):
                while not (self.failure.done() or await listens(self._port)):  # noqa: ASYNC110 - only the port can tell
                    await asyncio.sleep(SETTLE)
        except TimeoutError:
            raise StartFailed(
                f"The vendor's program is up, but does not listen on port {self._port}. Set runtime_port to its port."
            ) from None

    async def _ask_to_end(self, child: ChildProcess) -> None:
        """Ask it to end by SIGINT, which works only while it is idle."""
        with suppress(RuntimeFailure):
            await self._client.stop()
            while not (await self._client.provider()).done:
                await asyncio.sleep(SETTLE)
                await self._client.stop()
        child.send_signal(signal.SIGINT)

    async def _ask(self, call: Coroutine[Any, Any, T]) -> T:
        if self.failure.done():
            call.close()
            raise self.failure.result()
        try:
            return await call
        except ProtocolError as error:
            await self._process.ends_within(LAST_WORDS)  # its exit explains more than a closed connection
            raise self._process.fail(error) from error
