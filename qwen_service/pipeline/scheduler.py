"""Gives out turns: one bounded line for all slots, in the order of fairness.py."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from qwen_service.chat import ChatRequest
from qwen_service.engine import Engine
from qwen_service.engines.served import ServedModel
from qwen_service.engines.supervisor import Supervisor
from qwen_service.engines.waiting_room import Patience, WaitingRoom
from qwen_service.errors import Died, ProtocolError, QueueTimeout, ServiceError, Stalled
from qwen_service.pipeline.fairness import FairOrder, surplus
from qwen_service.recent import put_recent
from qwen_service.runtime import Prompt

MOST_SESSIONS = 1024  # 16 bytes and a name each


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to generate once on `engine`, the engine of `place`. `waited` is in seconds."""

    engine: Engine
    waited: float
    place: Supervisor


@dataclass(eq=False, slots=True)
class _Waiter:
    model: ServedModel
    prompt: Prompt
    granted: asyncio.Future[Supervisor]
    since: float = field(default_factory=time.monotonic)

    @property
    def request(self) -> ChatRequest:
        return self.prompt.request


class Scheduler:
    """The scheduler. `paused_reason(engine)`: why it gets no new work now, such as a hot card; "" when it may."""

    def __init__(self, room: WaitingRoom, *, paused_reason: Callable[[Engine], str] = lambda _: "") -> None:
        self._room = room
        room.in_line = lambda: len(self._waiting)
        self._paused_reason = paused_reason
        self._order = FairOrder()
        self._hints = SessionHints()
        self._waiting: list[_Waiter] = []  # in order of arrival
        self._running: dict[Supervisor, int] = {}
        self._warming: set[Supervisor] = set()
        # Called when a slot becomes free later than its turn ended.
        self.on_late_release: Callable[[], None] = lambda: None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(self._running.values())

    @asynccontextmanager
    async def turn(self, model: ServedModel, prompt: Prompt, patience: Patience | None = None) -> AsyncIterator[Turn]:
        """Wait for a slot and hold it. Raises QueueFull, QueueTimeout, or the reason why the model is gone."""
        started = time.monotonic()
        supervisor = await self._acquire(model, prompt, patience or self._room.arrive())
        engine = supervisor.engine
        try:
            if engine is None:  # the engine died after the grant
                raise Died(f"{model.name} stopped before the reply began: {supervisor.last_error}")
            try:
                yield Turn(engine, time.monotonic() - started, supervisor)
            except (Died, Stalled, ProtocolError) as failure:
                if engine.runtime.fails_as_one:
                    supervisor.report(engine, failure)
                raise
        finally:
            self._release_at_rest(supervisor, engine)

    def is_idle(self, place: Supervisor) -> bool:
        engine = place.engine
        taken = self._running.get(place) or place in self._warming or self._waiting or not self._room.size
        return engine is not None and not taken and not self._paused_reason(engine)

    @contextmanager
    def idle_turn(self, place: Supervisor) -> Iterator[Engine | None]:
        """Take an idle engine for work that nobody waits for; None when requests run or wait, or the engine is paused.

        A request that arrives meanwhile waits for the end of that work when the engine has only one slot.
        """
        if not self.is_idle(place):
            yield None
            return
        self._warming.add(place)
        try:
            yield place.engine
        finally:
            self._warming.discard(place)
            self.dispatch()

    def dispatch(self) -> None:
        """Grant what can be granted. Called whenever a slot, an engine or a model changes."""
        while self._settle_one():
            pass

    def _settle_one(self) -> bool:
        """Whether the line has changed. Nobody overtakes one who waits for the same model: a long prompt would starve."""
        stuck: set[ServedModel] = set()
        for waiter in self._order.sorted(self._waiting):
            if waiter.model in stuck:
                continue
            if self._settle(waiter):
                return True
            if not waiter.granted.done():
                stuck.add(waiter.model)
        return False

    def _settle(self, waiter: _Waiter) -> bool:
        """Grant one turn, if possible. Returns whether the line has changed."""
        if waiter.granted.done():  # its client has just left
            return False
        if (reason := waiter.model.out_of_service()) is not None:
            self._refuse(waiter, reason)
            return True
        if (place := self._best_place(waiter)) is None:
            return False
        self._waiting.remove(waiter)
        self._running[place] = self._running.get(place, 0) + 1
        self._order.note_turn(waiter.request)
        self._hints.note(waiter.request, place.name)
        waiter.granted.set_result(place)
        return True

    def _refuse(self, waiter: _Waiter, reason: ServiceError) -> None:
        self._waiting.remove(waiter)
        waiter.granted.set_exception(reason)

    async def _acquire(self, model: ServedModel, prompt: Prompt, patience: Patience) -> Supervisor:
        waiter = _Waiter(model, prompt, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            self.dispatch()
            self._bound()
            return await self._wait(waiter, patience)
        except BaseException:
            self._give_back(waiter)
            raise

    def _bound(self) -> None:
        present = [waiter for waiter in self._waiting if not waiter.granted.done()]  # granted ones are on their way out
        if len(present) > self._room.places_in_line:
            self._refuse(surplus(present), self._room.full(self._retry_after()))

    async def _wait(self, waiter: _Waiter, patience: Patience) -> Supervisor:
        try:
            async with asyncio.timeout(patience.left):
                return await waiter.granted
        except TimeoutError:
            why = self._held_back(waiter.model) or "all slots were busy"
            raise QueueTimeout(
                f"No slot became free within {patience.seconds:g} s (queue_timeout): {why}",
                retry_after=self._retry_after(),
            ) from None

    def _held_back(self, model: ServedModel) -> str:
        """The reasons why engines are paused; the other engines were busy all the time."""
        running = [supervisor.engine for supervisor in model.supervisors if supervisor.engine is not None]
        return " ".join(filter(None, map(self._paused_reason, running)))

    def _give_back(self, waiter: _Waiter) -> None:
        """Leave the line, and return a slot that was granted in that very moment."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        granted = waiter.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            self._release(granted.result())

    def _release_at_rest(self, supervisor: Supervisor, engine: Engine | None) -> None:
        """Free the slot: at once, or when work that cannot be stopped has ended. The caller does not wait for that."""
        rest = engine.runtime.still_running() if engine is not None else None
        if rest is None:
            self._release(supervisor)
        else:
            rest.add_done_callback(lambda _: self._release_late(supervisor))

    def _release_late(self, supervisor: Supervisor) -> None:
        self._release(supervisor)
        self.on_late_release()

    def _release(self, supervisor: Supervisor) -> None:
        supervisor.last_turn = time.monotonic()
        self._running[supervisor] -= 1
        if not self._running[supervisor]:
            del self._running[supervisor]
        self.dispatch()

    def _best_place(self, waiter: _Waiter) -> Supervisor | None:
        """Choose an engine with a free slot: the one whose KV cache holds most of the prompt, then the one where
        the session that the client names ran last, then the one idle longest.

        A card holds one conversation: when nothing can be reused, the least recently used one is replaced. Waiting for a busy
        card gains nothing: by the time it is free, its cache holds the other conversation.
        """
        free = [
            supervisor
            for supervisor in waiter.model.supervisors
            if (engine := supervisor.engine) is not None
            and self._running.get(supervisor, 0) < engine.slots
            and not (supervisor in self._warming and engine.slots == 1)
            and not self._paused_reason(engine)
            and engine.runtime.has_room(waiter.prompt)
        ]
        hinted = self._hints.place(waiter.request)

        def merit(supervisor: Supervisor) -> tuple[int, bool, int, float]:
            reusable = supervisor.engine.runtime.reusable_tokens(waiter.prompt) if supervisor.engine else 0
            return reusable, supervisor.name == hinted, -self._running.get(supervisor, 0), -supervisor.last_turn

        return max(free, key=merit, default=None)

    def _retry_after(self) -> float:
        """Seconds to wait, from the recent time per place in the line, within bounds."""
        oldest = self._waiting[0].since if self._waiting else time.monotonic()
        return min(60.0, max(1.0, time.monotonic() - oldest))


class SessionHints:
    """Remembers where a client's session ran last, by what the client calls it. A hint only: what a KV cache holds counts more."""

    def __init__(self) -> None:
        self._places: OrderedDict[bytes, str] = OrderedDict()

    def place(self, request: ChatRequest) -> str:
        """Return the name of the place; "" when none is remembered."""
        return self._places.get(_key(request), "") if request.session else ""

    def note(self, request: ChatRequest, place: str) -> None:
        if request.session:
            put_recent(self._places, _key(request), place, MOST_SESSIONS)


def _key(request: ChatRequest) -> bytes:
    """Digest of client and session: two clients may use the same session name."""
    name = f"{len(request.client)} {request.client} {request.session}"
    return hashlib.blake2b(name.encode(errors="replace"), digest_size=16).digest()
