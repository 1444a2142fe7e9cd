"""The state of the whole service at one moment, read without waiting: what /health and the gauges show."""

from dataclasses import dataclass
from typing import Literal

from qwen_service.card.smi import Card
from qwen_service.pipeline.warming import Warm, WarmCounts

Status = Literal["ok", "degraded", "down"]


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
