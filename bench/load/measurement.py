"""What was seen of one request, and of one batch of simultaneous ones. Times are of one monotonic clock, in seconds."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Measurement:
    target: str
    scenario: str
    clients: int
    round: int
    turn: int
    sent: float  # the request's last byte was handed to the socket
    ended: float
    token_times: tuple[float, ...] = ()  # when each piece of text arrived
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    queue: float | None = None  # as the server tells; most do not
    finish: str = ""
    error: str = ""

    @property
    def ttft(self) -> float | None:
        return self.token_times[0] - self.sent if self.token_times else None

    @property
    def e2e(self) -> float:
        return self.ended - self.sent

    @property
    def gaps(self) -> list[float]:
        """Between pieces as they arrived: what a reader feels. A piece may be more than one token."""
        return [after - before for before, after in zip(self.token_times, self.token_times[1:], strict=False)]

    @property
    def tokens(self) -> int:
        """As the server counts, else one per piece."""
        return len(self.token_times) if self.completion_tokens is None else self.completion_tokens

    @property
    def tokens_per_second(self) -> float | None:
        """While it generates: the first token ends the prompt's time and starts this one."""
        span = self.token_times[-1] - self.token_times[0] if self.token_times else 0.0
        return (self.tokens - 1) / span if span > 0 and self.tokens > 1 else None


@dataclass(frozen=True, slots=True)
class Batch:
    """All clients of one target, once through one scenario, at the same time."""

    target: str
    scenario: str
    clients: int
    round: int
    measurements: tuple[Measurement, ...]

    @property
    def good(self) -> list[Measurement]:
        return [m for m in self.measurements if not m.error]

    @property
    def throughput(self) -> float | None:
        """Tokens of all clients together per second of the whole batch."""
        if not self.good:
            return None
        span = max(m.ended for m in self.good) - min(m.sent for m in self.good)
        return sum(m.tokens for m in self.good) / span if span > 0 else None


@dataclass(slots=True)
class Surroundings:
    """What was seen beside the requests."""

    peak_rss: dict[str, int] = field(default_factory=dict)  # target -> bytes of all its processes together
    peak_temperature: dict[str, float] = field(default_factory=dict)  # target -> degrees Celsius
