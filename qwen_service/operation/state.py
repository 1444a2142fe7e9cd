"""One look at the whole service, taken without waiting for anything: what /health shows and what the gauges show."""

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
    warm: Warm | None = None  # what its cache was prefilled with, until a request comes


@dataclass(frozen=True, slots=True)
class ModelState:
    name: str
    runtime: str
    phase: str
    engines: tuple[EngineState, ...]
    tokenizer_ready: bool = False
    asleep: bool = False  # unloaded because nobody uses it; the next request loads it
    prompt_seconds: float | None = None  # what 100 tokens of prompt cost, where prefill is slow

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
class ServiceState:
    version: str
    uptime: float  # seconds
    running: int
    waiting: int
    queue_size: int
    model: ModelState | None = None
    fallback: ModelState | None = None
    switching_to: str = ""
    trouble: str = ""  # why there is no model, or no fallback
    cards: tuple[CardView, ...] = ()
    card_fault: str = ""
    speech: tuple[EngineState, ...] = ()  # the programs that hear and speak, as far as there are such

    warmings: WarmCounts | None = None  # None: switched off

    @property
    def fallback_serves(self) -> bool:
        card_serves = self.model is not None and self.model.ready
        return not card_serves and self.fallback is not None and self.fallback.ready

    @property
    def status(self) -> Status:
        """down: nobody can be answered. degraded: everybody can, but somebody should have a look."""
        if self.model is None or not self.model.ready:
            return "degraded" if self.fallback_serves else "down"
        speech_is_well = all(engine.phase == "ready" for engine in self.speech)
        cards_are_well = not self.card_fault and all(view.state in ("ok", "warm") for view in self.cards)
        return "ok" if self.model.whole and cards_are_well and speech_is_well and not self.trouble else "degraded"
