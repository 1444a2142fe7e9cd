"""An engine: a runtime that is up, with its limits and the text tools of its model."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from qwen_service.errors import RuntimeFailure
from qwen_service.runtime import Limits, LoadProgress, Runtime, Tokenizer
from qwen_service.text.output_format import OutputFormat
from qwen_service.text.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class ModelText:
    """The text tools of one model: they turn a conversation into ids, and output text into events."""

    tokenizer: Tokenizer
    template: ChatTemplate
    output_format: OutputFormat


class TokenizerService(Protocol):
    """The HTTP tokenizer server that a vendor's program asks. It is stopped after the program."""

    @property
    def ready(self) -> bool: ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """A runtime that is ready, with the limits it reported and what else was started for it."""

    runtime: Runtime
    limits: Limits
    text: ModelText
    companion: TokenizerService | None = None
    devices: tuple[int, ...] = ()  # the cards that it works on

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
