"""The state of the whole service at one moment, read without waiting: what /health and the gauges show.

`Overview` reads it from the running parts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from qwen_service.audio.engine import SpeechEngine
from qwen_service.card.monitor import CardMonitor
from qwen_service.card.smi import Card
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.served import ServedModel
from qwen_service.engines.supervisor import Supervised, Supervisor
from qwen_service.pipeline.scheduler import Scheduler
from qwen_service.pipeline.warming import Warm, WarmCounts, Warmer

Status = Literal["ok", "degraded", "down"]
E = TypeVar("E", bound=Supervised)


@dataclass(frozen=True, slots=True)
class EngineState:
    name: str
    phase: str
    progress: str = ""
    restarts: int = 0
    last_error: str = ""
    warm: Warm | None = None  # what its KV cache was prefilled with; None once a request has come
    cache: str = ""  # what its KV cache keeps, where that was chosen


@dataclass(frozen=True, slots=True)
class ModelState:
    name: str
    runtime: str
    phase: str
    engines: tuple[EngineState, ...]
    tokenizer_ready: bool = False
    asleep: bool = False  # unloaded because nobody uses it; the next request loads it
    prompt_seconds: float | None = None  # time to prefill 100 tokens, where prefill is slow

    @property
    def ready(self) -> bool:
        return self.phase == "ready" or self.asleep

    @property
    def whole(self) -> bool:
        return self.asleep or all(engine.phase == "ready" for engine in self.engines)


@dataclass(frozen=True, slots=True)
class CardView:
    card: Card
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One engine of a cluster."""

    node: str
    place: str  # "card 0", or "CPU"
    model: str
    state: str  # the phase of its supervisor, or paused, or gone
    reason: str = ""
    restarts: int = 0
    running: int = 0
    held_tokens: tuple[int, ...] = ()  # of each conversation in its cache
    tokens_per_second: float = 0.0
    temperature: float | None = None  # degrees C


@dataclass(frozen=True, slots=True)
class ServiceState:
    version: str
    uptime: float  # seconds
    running: int
    waiting: int
    queue_size: int
    model: ModelState | None = None
    fallback: ModelState | None = None
    switching_to: str = ""
    trouble: str = ""  # why there is no model or no fallback
    cards: tuple[CardView, ...] = ()
    card_fault: str = ""
    replicas: tuple[ReplicaView, ...] = ()  # of a cluster
    speech: tuple[EngineState, ...] = ()  # the speech programs, if any are configured
    warmings: WarmCounts | None = None  # None: switched off

    @property
    def fallback_serves(self) -> bool:
        card_serves = self.model is not None and self.model.ready
        return not card_serves and self.fallback is not None and self.fallback.ready

    @property
    def status(self) -> Status:
        """down: no request can be answered. degraded: requests are answered, but something needs attention."""
        if self.model is None or not self.model.ready:
            return "degraded" if self.fallback_serves else "down"
        speech_is_well = all(engine.phase == "ready" for engine in self.speech)
        cards_are_well = not self.card_fault and all(view.state in ("ok", "warm") for view in self.cards)
        replicas_are_well = all(replica.state == "ready" for replica in self.replicas)
        well = self.model.whole and cards_are_well and replicas_are_well and speech_is_well and not self.trouble
        return "ok" if well else "degraded"


class Replicas(Protocol):
    """The engines of a cluster, where the service is its ingress."""

    on_change: Callable[[], None]

    def views(self) -> tuple[ReplicaView, ...]: ...

    def loads_quickly(self) -> bool: ...


class Overview:
    """Returns the current ServiceState when called. `cards` is None on a machine without cards."""

    def __init__(
        self,
        models: ModelManager,
        scheduler: Scheduler,
        cards: CardMonitor | None,
        *,
        speech: Sequence[SpeechEngine] = (),
        warmer: Warmer | None = None,
        replicas: Replicas | None = None,
        version: str,
    ) -> None:
        self._models = models
        self._scheduler = scheduler
        self._cards = cards
        self._speech = speech
        self._warmer = warmer
        self._replicas = replicas
        self._version = version
        self._started = time.monotonic()

    def __call__(self) -> ServiceState:
        models, cards = self._models, self._cards
        return ServiceState(
            version=self._version,
            uptime=time.monotonic() - self._started,
            running=self._scheduler.running,
            waiting=models.room.waiting,
            queue_size=models.room.size,
            model=_model_state(models.current, self._warmer),
            fallback=_model_state(models.fallback, None),
            switching_to=models.switching_to,
            trouble=models.trouble,
            cards=tuple(CardView(s.card, s.state, s.reason) for s in cards.statuses.values()) if cards else (),
            card_fault=cards.fault if cards else "",
            replicas=self._replicas.views() if self._replicas is not None else (),
            speech=tuple(_engine_state(speech.supervisor) for speech in self._speech),
            warmings=self._warmer.counts if self._warmer is not None else None,
        )


def _model_state(model: ServedModel | None, warmer: Warmer | None) -> ModelState | None:
    if model is None:
        return None
    engines = tuple(
        _engine_state(s, warmer.warm(s) if warmer is not None else None, s.engine.cache if s.engine else "")
        for s in model.supervisors
    )
    rate = model.spec.prefill_rate
    return ModelState(
        model.name,
        model.spec.runtime,
        model.phase,
        engines,
        tokenizer_ready=model.tokenizer_ready or model.asleep,
        asleep=model.asleep,
        prompt_seconds=round(100 / rate, 1) if rate else None,
    )


def _engine_state(supervisor: Supervisor[E], warm: Warm | None = None, cache: str = "") -> EngineState:
    s = supervisor
    return EngineState(s.name, s.phase, s.progress, s.restarts, s.last_error, warm, cache)
