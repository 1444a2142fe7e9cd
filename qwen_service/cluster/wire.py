"""The values that travel between ingress and replica. Needs no Ray.

A replica answers a Work with Prefill and Piece items, like a Runtime. A ServiceError is sent as the last item, not as an
exception, so that it arrives unchanged.
"""

from dataclasses import dataclass

from qwen_service.chat import Sampling
from qwen_service.cluster.ranking import NEVER, Held
from qwen_service.errors import ServiceError
from qwen_service.runtime import Capabilities, Limits, Piece, Prefill, Prompt

Item = Prefill | Piece | ServiceError


@dataclass(frozen=True, slots=True)
class Work:
    """A generation to do. `key` identifies it in reports."""

    key: str
    prompt: Prompt
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Report:
    """The report of a replica, made every `report_period`. Times are in seconds."""

    node: str
    place: str  # "card 0", or "CPU"
    model: str
    phase: str  # the phase of its supervisor
    progress: str = ""
    error: str = ""
    restarts: int = 0
    paused: str = ""  # why it gets no new work, such as a hot card
    temperature: float | None = None
    limits: Limits | None = None  # None: not up yet
    capabilities: Capabilities | None = None
    running: int = 0
    held: tuple[Held, ...] = ()
    per_id: float = 0.01
    per_reply: float = 10.0
    tokens_per_second: float = 0.0
    idle: float = NEVER  # since the end of its last reply
    seen: tuple[str, ...] = ()  # keys of the works that it took last

    @property
    def ready(self) -> bool:
        return self.phase == "ready" and self.limits is not None

    @property
    def where(self) -> str:
        return f"{self.place} of {self.node}"
