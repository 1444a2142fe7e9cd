"""Builds a ServiceState from the running parts."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from qwen_service.audio.engine import SpeechEngine
from qwen_service.card.monitor import CardMonitor
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.served import ServedModel
from qwen_service.engines.supervisor import Supervised, Supervisor
from qwen_service.operation.state import CardView, EngineState, ModelState, ReplicaView, ServiceState
from qwen_service.pipeline.scheduler import Scheduler
from qwen_service.pipeline.warming import Warm, Warmer

E = TypeVar("E", bound=Supervised)


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
