"""Engine: a runtime that is ready, with its limits and the text tools of its model."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from qwen_service.errors import RuntimeFailure
from qwen_service.runtime import Limits, LoadProgress, Runtime, Tokenizer
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class ModelText:
    """The text tools of one model: template and tokenizer for the prompt, parser for the output."""

    tokenizer: Tokenizer
    template: ChatTemplate
    output_format: OutputFormat


class TokenizerService(Protocol):
    """The HTTP tokenizer server that the vendor's program calls. Stop it after the program."""

    @property
    def ready(self) -> bool: ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """A runtime that is ready, with the limits that it reported and everything that was started for it."""

    runtime: Runtime
    limits: Limits
    text: ModelText
    companion: TokenizerService | None = None
    devices: tuple[int, ...] = ()  # indices of the cards that it uses
    cache: str = ""  # what its KV cache keeps, in plain words, where that was chosen
    slots_now: Callable[[], int] | None = None  # where it is many engines, which come and go

    @property
    def slots(self) -> int:
        """Generations at once, now."""
        return self.limits.slots if self.slots_now is None else self.slots_now()

    async def failed(self) -> RuntimeFailure:
        return await self.runtime.failed()

    async def stop(self) -> None:
        try:
            await self.runtime.stop()
        finally:
            if self.companion is not None:
                await self.companion.stop()


# Starts one engine. Raises a ServiceError when it cannot, and then leaves no process behind.
BringUp = Callable[[LoadProgress], Awaitable[Engine]]
