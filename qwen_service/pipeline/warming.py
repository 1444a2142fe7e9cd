"""Prefills the most probable beginning of the next request while the engine is idle.

After each reply, and when an engine comes up, the policy of that engine (warm_policy.py) is asked what its KV cache
should hold. beginnings.py finds the ids.
"""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace

from qwen_service.chat import ChatRequest
from qwen_service.engine import Engine
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.served import ServedModel
from qwen_service.engines.supervisor import Supervisor
from qwen_service.errors import RuntimeFailure
from qwen_service.pipeline.beginnings import (
    NOTHING,
    NOTHING_SAID,
    Beginnings,
    Exchange,
    head_of,
    holds,
    is_conversation,
    leading,
)
from qwen_service.pipeline.conversation import SessionManager
from qwen_service.pipeline.head_file import HeadFile, StoredHead
from qwen_service.pipeline.scheduler import Scheduler
from qwen_service.pipeline.warm_policy import Head, Ids, Option, WarmPolicy
from qwen_service.runtime import Prompt

log = logging.getLogger(__name__)

SHORTEST_HEAD = 32  # ids; one step of a card computes 128
SECONDS_PER_ID = 0.01  # prefill time of a card, until one was measured


@dataclass(frozen=True, slots=True)
class Warm:
    """The prefix that an engine's cache was last made to hold."""

    kind: str
    tokens: int


@dataclass(frozen=True, slots=True)
class WarmCounts:
    """Counts since the start of the service. `hits`: requests that began with a prefix that had been prefilled."""

    conversations: int = 0
    heads: int = 0
    seconds: float = 0.0
    hits: int = 0


@dataclass(eq=False, slots=True)
class _Place:
    policy: WarmPolicy = field(default_factory=WarmPolicy)
    engine: Engine | None = None  # the engine that was examined last
    exchange: Exchange | None = None  # the last exchange
    warm: Warm | None = None
    tried: set[Ids] = field(default_factory=set)  # prefixes tried since the last request
    samples: dict[Head, ChatRequest] = field(default_factory=dict)  # head -> one request that began with it
    heads: dict[Head, Prompt] = field(default_factory=dict)  # without ids: too short, or refused by the template
    stored: Head = b""  # the head in the file
    seconds_per_id: float = SECONDS_PER_ID


class Warmer:
    def __init__(self, models: ModelManager, sessions: SessionManager, scheduler: Scheduler, file: HeadFile) -> None:
        self._models = models
        self._beginnings = Beginnings(sessions)
        self._scheduler = scheduler
        self._file = file
        self._places: dict[Supervisor, _Place] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.counts = WarmCounts()
        scheduler.on_late_release = self.nudge

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="warming")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def nudge(self) -> None:
        """Look at the engines soon: a reply has ended, or an engine has come up."""
        self._changed.set()

    def warm(self, supervisor: Supervisor) -> Warm | None:
        place = self._places.get(supervisor)
        return place.warm if place is not None and place.engine is supervisor.engine else None

    def began(self, supervisor: Supervisor, exchange: Exchange) -> None:
        place = self._place(supervisor)
        place.tried = set()
        request = exchange.prompt.request
        if request.priority == "background":  # a title, say: the next request continues the same talk
            return
        before = place.exchange.prompt.request if place.exchange is not None else None
        goes_on = before is not None and request.messages[: len(before.messages)] == before.messages
        head = head_of(exchange.model, request)
        goes_on = goes_on and is_conversation(request)
        place.policy.arrived(head, time.monotonic(), goes_on=goes_on, varies=request.moved_lines > 0)
        if is_conversation(request):
            place.samples.setdefault(head, request)
        place.exchange = exchange

    def ended(self, supervisor: Supervisor, exchange: Exchange) -> None:
        place = self._place(supervisor)
        if place.exchange is not exchange:
            place.warm = None
            self.nudge()
            return
        if place.warm is not None:
            self.counts = replace(self.counts, hits=self.counts.hits + (exchange.cached >= place.warm.tokens))
            place.warm = None
        place.policy.ended(time.monotonic())
        self.nudge()

    def _place(self, supervisor: Supervisor) -> _Place:
        return self._places.setdefault(supervisor, _Place())

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                pause = await self._look_at_all()
            except Exception:  # a fault here must not disturb replies or later warmings
                log.exception("prefilling failed for an unexpected reason")
                pause = None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    async def _look_at_all(self) -> float | None:
        """Look at all engines. Returns the seconds until the next look that is due although nothing happens."""
        model = self._models.current
        supervisors = model.supervisors if model is not None else ()
        self._places = {place: state for place, state in self._places.items() if place in supervisors}
        pauses = []
        for supervisor in supervisors:
            if model is not None and supervisor.engine is not None and not self._models.switching_to:
                await self._look(model, supervisor, supervisor.engine)
                pauses.append(self._place(supervisor).policy.next_look(time.monotonic()))
        return min((pause for pause in pauses if pause is not None), default=None)

    async def _look(self, model: ServedModel, supervisor: Supervisor, engine: Engine) -> None:
        place = self._place(supervisor)
        warms = engine.runtime.capabilities.warms
        if place.engine is not engine:
            place.engine, place.warm, place.tried = engine, None, set()
            self._recall(model, place)
        if warms == "nothing" or not self._scheduler.is_idle(supervisor):
            return
        await self._learn_heads(model, engine, place)
        if warms == "head" and place.exchange is not None:
            return
        candidates = await self._candidates(model, engine, place)
        choice = place.policy.choose(list(candidates), time.monotonic(), seconds_per_id=place.seconds_per_id)
        if choice is not None and candidates[choice].token_ids not in place.tried:
            place.tried.add(candidates[choice].token_ids)
            await self._prefill(model, supervisor, place, choice, candidates[choice])

    def _recall(self, model: ServedModel, place: _Place) -> None:
        stored, place.stored = self._file.take(model.name), b""
        if stored is not None:
            place.heads[stored.head] = Prompt(stored.ids, NOTHING_SAID)
            place.policy.expect(stored.head)

    async def _learn_heads(self, model: ServedModel, engine: Engine, place: _Place) -> None:
        for head in place.policy.common_heads:
            request = place.samples.get(head)
            if head in place.heads or request is None:
                continue
            first = leading(request)
            known = await self._beginnings.of_next(model, engine, request, first) if first or request.tools else NOTHING
            place.heads[head] = known if len(known.token_ids) >= SHORTEST_HEAD else NOTHING
            if place.heads[head].token_ids and head == place.policy.common_heads[0]:
                self._store(model, place, head)
        place.samples = {head: request for head, request in place.samples.items() if head not in place.heads}

    async def _candidates(self, model: ServedModel, engine: Engine, place: _Place) -> dict[Option, Prompt]:
        found: dict[Option, Prompt] = {}
        for head in place.policy.common_heads:
            known = place.heads.get(head, NOTHING)
            if size := len(known.token_ids):
                held = holds(engine, known.token_ids, lacking=0)
                found[Option("head", size, held=held, loses=engine.runtime.warming_loses(known), head=head)] = known
        if place.exchange is not None and is_conversation(place.exchange.prompt.request):
            known, held = await self._beginnings.of_conversation(model, engine, place.exchange)
            loses = engine.runtime.warming_loses(known)
            found[Option("conversation", len(known.token_ids), held=held, loses=loses)] = known
        return found

    async def _prefill(
        self, model: ServedModel, supervisor: Supervisor, place: _Place, choice: Option, known: Prompt
    ) -> None:
        with self._scheduler.idle_turn(supervisor) as engine:
            if engine is None or engine is not place.engine or self._models.switching_to:
                return
            started = time.monotonic()
            try:
                if not await engine.runtime.warm(known):
                    return
            except RuntimeFailure as failure:
                log.warning("%s: prefilling failed: %s", supervisor.name, failure.message)
                place.heads[choice.head] = NOTHING  # set first: a head that crashes the engine must not be tried again
                return
            seconds = time.monotonic() - started
        size = len(known.token_ids)
        place.warm = Warm(choice.kind, size)
        place.seconds_per_id = seconds / size
        self._count(choice, seconds)
        what = "the last conversation" if choice.kind == "conversation" else "how most conversations begin"
        log.info("%s: prefilled %s, %d tokens in %.1f s", supervisor.name, what, size, seconds)
        if choice.kind == "head":
            self._store(model, place, choice.head)
        self.nudge()  # the cache may have room for something else

    def _store(self, model: ServedModel, place: _Place, head: Head) -> None:
        if place.stored != head:
            self._file.put(model.name, StoredHead(head, place.heads[head].token_ids))
            place.stored = head

    def _count(self, choice: Option, seconds: float) -> None:
        counts = self.counts
        self.counts = replace(
            counts,
            conversations=counts.conversations + (choice.kind == "conversation"),
            heads=counts.heads + (choice.kind == "head"),
            seconds=counts.seconds + seconds,
        )
