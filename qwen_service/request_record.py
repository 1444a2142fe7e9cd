"""What one HTTP request turned out to be: filled in on its way, read once at its end by the log and the metrics.

`current_record` hands it to whoever works on the request, however deep, without a parameter through every layer;
tasks started for the request see it too. Outside a request there is none, and nothing is recorded.
"""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from qwen_service.chat import Finished, Started

CLIENT_LEFT = 499  # nginx's code for a client that closed before the answer


@dataclass(slots=True)
class RequestRecord:
    id: str
    method: str
    path: str
    dialect: str
    client: str = ""  # API key name, or address
    route: str = ""  # the route's pattern, "" where none matched
    status: int = CLIENT_LEFT
    model: str = ""
    priority: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    trimmed_messages: int = 0
    queue: float = 0.0
    first_token: float | None = None  # seconds from `started`
    duration: float = 0.0
    finish: str = ""  # finish reason, "" where no generation ended
    error: str = ""  # class name of the ServiceError that ended it
    started: float = field(default_factory=time.perf_counter)

    def generation_started(self, event: Started) -> None:
        self.model = event.model
        self.trimmed_messages = max(self.trimmed_messages, event.trimmed_messages)

    def token_seen(self) -> None:
        if self.first_token is None:
            self.first_token = time.perf_counter() - self.started

    def generation_finished(self, event: Finished) -> None:
        """Several choices of one request add up; the prompt counts once."""
        self.finish = event.reason
        self.prompt_tokens = max(self.prompt_tokens, event.usage.prompt_tokens)
        self.cached_tokens = max(self.cached_tokens, event.usage.cached_tokens)
        self.completion_tokens += event.usage.completion_tokens
        self.queue = max(self.queue, event.timings.queue)

    def close(self) -> None:
        self.duration = time.perf_counter() - self.started


current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)
