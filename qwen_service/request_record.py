"""What happened to one HTTP request: filled in on its way, read once at its end by the log and the metrics.

`current_record` gives it to all code that works on the request, without a parameter through every layer;
tasks started for the request see it too.
"""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Self

from qwen_service.chat import Finished, Started
from qwen_service.errors import ServiceError

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
    fallback: bool = False  # answered by the CPU in place of the card
    priority: str = ""
    session: str = ""  # as a header names it; the log does not show it
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    trimmed_messages: int = 0
    queue: float = 0.0
    first_token: float | None = None  # seconds from `started`
    duration: float = 0.0
    speech: str = ""  # speech_to_text or text_to_speech, when one of them was used
    speech_seconds: float = 0.0  # length of the sound that was heard or made
    finish: str = ""  # finish reason, "" where no generation ended
    error: str = ""  # class name of the ServiceError that ended it
    started: float = field(default_factory=time.perf_counter)

    def begin(self, event: Started, queue: float) -> None:
        """`queue`: seconds that the request has waited."""
        self.model = event.model
        self.fallback = event.fallback
        self.trimmed_messages = max(self.trimmed_messages, event.trimmed_messages)
        self.queue = max(self.queue, queue)

    def prefilled(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Note a prompt that the engine has taken. Several choices have the same prompt, which counts once."""
        self.prompt_tokens = max(self.prompt_tokens, prompt_tokens)
        self.cached_tokens = max(self.cached_tokens, cached_tokens)

    def generated(self, tokens: int) -> None:
        if self.first_token is None and tokens:
            self.first_token = time.perf_counter() - self.started
        self.completion_tokens += tokens

    def first_sound(self) -> None:
        if self.first_token is None:
            self.first_token = time.perf_counter() - self.started

    def end(self, event: Finished) -> None:
        """Note a finished choice. The completion tokens of several choices have been added up."""
        self.finish = event.reason
        self.prefilled(event.usage.prompt_tokens, event.usage.cached_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Note the ServiceError that ended the request, if one did."""
        if isinstance(error, ServiceError):
            self.error = type(error).__name__

    def close(self) -> None:
        self.duration = time.perf_counter() - self.started


current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)


def recording() -> RequestRecord:
    """The record of the current request; outside a request, a new one that is never read."""
    return current_record.get() or RequestRecord("", "", "", "")
