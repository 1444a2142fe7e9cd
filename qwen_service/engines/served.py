"""A model that is being served: its supervisors, one per device, and the number of its users."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from qwen_service.engine import Engine
from qwen_service.engines.rest import Rest
from qwen_service.engines.supervisor import Phase, Supervisor
from qwen_service.engines.waiting_room import Patience, WaitingRoom
from qwen_service.errors import Loading, ServiceError, Unavailable
from qwen_service.models.installed import InstalledModel
from qwen_service.models.spec import ModelSpec

PATIENCE_FOR_LOADING = 10.0  # seconds: requests do not wait for a model that loads longer, but get 503


@dataclass(eq=False)
class ServedModel:
    installed: InstalledModel
    supervisors: tuple[Supervisor, ...]
    is_fallback: bool = False
    unload_when_idle: float | None = None  # seconds; None: stays loaded
    loads_quickly: Callable[[], bool] | None = None  # whether to wait for a load; None: by the manifest
    rest: Rest = field(init=False)
    _left: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self.rest = Rest(
            keep_for=self.unload_when_idle,
            # Loading takes minutes on a card; the fallback is unloaded when the card is back.
            is_allowed=not self.is_fallback and (self.unload_when_idle is not None or not self.spec.needs_npu),
            is_loaded=lambda: self.phase == "ready",
            unload=self._unload,
            load=self._load,
        )

    @property
    def name(self) -> str:
        return self.installed.name

    @property
    def spec(self) -> ModelSpec:
        return self.installed.spec

    @property
    def users(self) -> int:
        """The number of requests that use the model, from their arrival to their end."""
        return self.rest.users

    @property
    def asleep(self) -> bool:
        """Whether it is unloaded because nobody uses it; the next request loads it again."""
        return self.rest.asleep

    @property
    def phase(self) -> Phase:
        """The best phase of its engines."""
        order: tuple[Phase, ...] = ("ready", "loading", "restarting", "failed", "stopped")
        return min((supervisor.phase for supervisor in self.supervisors), key=order.index)

    @property
    def engine(self) -> Engine | None:
        return next((s.engine for s in self.supervisors if s.engine is not None), None)

    @property
    def progress(self) -> str:
        """The progress of the first engine that loads."""
        return next((supervisor.progress for supervisor in self.supervisors if supervisor.progress), "")

    @property
    def last_error(self) -> str:
        """The error of the first engine that does not run."""
        return next((s.last_error for s in self.supervisors if s.last_error and s.phase != "ready"), "")

    @property
    def tokenizer_ready(self) -> bool:
        """Whether the tokenizer server runs that a vendor's program calls. llama.cpp has its own tokenizer."""
        engine = self.engine
        return engine is not None and (engine.companion is None or engine.companion.ready)

    @property
    def down_for(self) -> float:
        """Seconds since an engine was last ready; 0 while one is ready, or none is wanted."""
        if self.engine is not None or self.asleep:
            return 0.0
        return time.monotonic() - min(supervisor.down_since for supervisor in self.supervisors)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        try:
            with self.rest.in_use():
                yield
        finally:
            self._left.set()

    async def unused(self) -> None:
        """Wait until no request uses the model any more."""
        while self.users:
            await self.one_has_left()

    async def one_has_left(self) -> None:
        """Wait until the next of the requests that use the model has ended."""
        self._left.clear()
        await self._left.wait()

    def start(self) -> None:
        self._load()
        self.rest.plan()

    async def stop(self) -> None:
        await self.rest.end()
        await self._unload()

    def _load(self) -> None:
        for supervisor in self.supervisors:
            supervisor.start()

    async def _unload(self) -> None:
        await asyncio.gather(*(supervisor.stop() for supervisor in self.supervisors))

    async def first_load_done(self) -> None:
        """Wait until the first load has succeeded or failed."""
        await asyncio.gather(*(supervisor.first_load_done.wait() for supervisor in self.supervisors))

    def out_of_service(self) -> ServiceError | None:
        """The error for requests when waiting for this model is useless; None while it runs or will run again."""
        match self.phase:
            case "failed":
                return Unavailable(f"{self.name} cannot run: {self.last_error}")
            case "stopped":
                return Loading(f"{self.name} is not running any more", retry_after=10)
            case _:
                return None

    async def ready(self, room: WaitingRoom, patience: Patience) -> Engine:
        """Return an engine that runs. Waits in `room` for a quick load or restart. Raises QueueFull, Loading or Unavailable."""
        if self.asleep:  # checked first: a model that is just being unloaded still has its engine
            await self.rest.wake()
        if (engine := self.engine) is not None:
            return engine
        if (reason := self.out_of_service()) is not None:
            raise reason
        if self._loads_slowly:
            raise self._loading()
        with room.wait_for_model():
            try:
                async with asyncio.timeout(patience.left):
                    while self.engine is None and self.out_of_service() is None:
                        await self._a_change()
            except TimeoutError:
                raise self._loading() from None
        if (engine := self.engine) is None:
            raise self.out_of_service() or self._loading()
        return engine

    @property
    def _loads_slowly(self) -> bool:
        """Whether loading takes too long to wait for. On a card it takes minutes, even if nobody has measured it."""
        if self.loads_quickly is not None:
            return not self.loads_quickly()
        known = self.spec.load_seconds
        return self.spec.needs_npu if known is None else known > PATIENCE_FOR_LOADING

    async def _a_change(self) -> None:
        coming = [supervisor for supervisor in self.supervisors if supervisor.phase in ("loading", "restarting")]
        settled = [asyncio.ensure_future(supervisor.finished_loading()) for supervisor in coming]
        try:
            await asyncio.wait(settled, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in settled:
                waiting.cancel()

    def _loading(self) -> Loading:
        how_far = f" ({self.progress})" if self.progress else ""
        why = f" after: {self.last_error}" if self.phase == "restarting" else ""
        return Loading(f"{self.name} is {self.phase}{how_far}{why}", retry_after=self.spec.load_seconds or 5.0)
