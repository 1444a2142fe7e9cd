"""One reply as far as it has been generated: its counts, times and text, for its client, its record and the warmer."""

import time
from dataclasses import dataclass, field
from typing import Literal, Self

from qwen_service.chat import (
    Event,
    Finished,
    Message,
    Started,
    TextDelta,
    Timings,
    ToolCall,
    Usage,
)
from qwen_service.engines.supervisor import Supervisor
from qwen_service.pipeline.beginnings import Exchange
from qwen_service.pipeline.conversation import Fitted
from qwen_service.pipeline.scheduler import Turn
from qwen_service.pipeline.warming import Warmer
from qwen_service.request_record import RequestRecord
from qwen_service.runtime import Piece, Prefill
from qwen_service.text.output_parser import OutputParser

_NOTHING = Piece()


@dataclass(slots=True)
class Reply:
    """What has been generated so far, and when; what the request's record must know of it goes there."""

    record: RequestRecord
    load: float
    queue: float
    started: float = field(default_factory=time.monotonic)
    first_piece: float = 0.0
    token_count: int = 0
    pictures: bool = False
    cached_tokens: int = 0
    prompt_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    reason: Literal["stop", "length"] = "stop"

    def begin(self, event: Started) -> Started:
        self.record.begin(event, self.queue)
        return event

    def add(self, item: Prefill | Piece) -> Piece:
        if isinstance(item, Prefill):
            self.record.prefilled(item.prompt_tokens, item.cached_tokens)
            self.cached_tokens = item.cached_tokens
            if self.pictures:  # only the engine knows what they cost
                self.prompt_tokens = item.prompt_tokens
            return _NOTHING
        self.first_piece = self.first_piece or time.monotonic()
        self.token_count += item.token_count
        self.prompt_tokens = item.prompt_tokens or self.prompt_tokens
        self.record.generated(item.token_count)
        self.token_ids += item.token_ids
        self.reason = item.finish_reason or self.reason
        return item

    def note(self, event: Event) -> Event:
        if isinstance(event, TextDelta):
            self.text.append(event.text)
        elif isinstance(event, ToolCall):
            self.calls.append(event)
        return event

    @property
    def ids_are_exact(self) -> bool:
        return len(self.token_ids) == self.token_count

    def message(self) -> Message:
        return Message("assistant", "".join(self.text), tool_calls=tuple(self.calls))

    def finished(self, fitted: Fitted, parser: OutputParser) -> Finished:
        now = time.monotonic()
        first = self.first_piece or now
        prompt_ids = fitted.prompt.token_ids
        event = Finished(
            parser.finish_reason(self.reason),
            Usage(self.prompt_tokens or len(prompt_ids), self.token_count, self.cached_tokens, parser.reasoning_tokens),
            Timings(self.load, self.queue, prefill=first - self.started, generation=now - first),
            (*prompt_ids, *self.token_ids) if self.ids_are_exact and not self.pictures else (),
            parser.stop_string,
        )
        self.record.end(event)
        return event


@dataclass(slots=True)
class SeenByClient:
    """Tells the warmer of one exchange as far as its client has seen it, also where the client leaves."""

    warmer: Warmer | None
    exchange: Exchange
    place: Supervisor | None = None
    reply: Reply | None = None

    def began(self, turn: Turn, reply: Reply) -> None:
        self.place, self.reply = turn.place, reply
        if self.warmer is not None:
            self.warmer.began(turn.place, self.exchange)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.warmer is not None and self.place is not None and self.reply is not None:
            self.exchange.reply = self.reply.message()
            self.exchange.reply_ids = tuple(self.reply.token_ids)
            self.exchange.cached = self.reply.cached_tokens
            self.warmer.ended(self.place, self.exchange)
