"""The seam between the pipeline and everything that can generate tokens.

A runtime drives one process on one device. It is started once, generates as many prompts at a time as it
has slots, and is stopped once; when it fails it is discarded and a new one is made. Restarting, waiting
lines and switching are done elsewhere (engines/supervisor, engines/waiting_room, engines/manager).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from qwen_service.chat import ChatRequest, PromptParts, Sampling, TokenLogprob
from qwen_service.errors import RuntimeFailure


class Tokenizer(Protocol):
    """Turns text into token ids: from a local tokenizer.json, or by asking the engine."""

    async def encode(self, parts: PromptParts) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Capabilities:
    sampling: frozenset[str]  # fields of chat.Sampling that are honoured per request
    constrained_output: bool = False  # honours Sampling.json_schema
    grammars: bool = False  # honours Sampling.grammar (the engine has llguidance)
    logprobs: bool = False
    warms: Literal["nothing", "head", "all"] = "nothing"  # what warm() can prefill; head: only right after the start


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that the running engine reports, in tokens."""

    context: int  # prompt + completion of one generation
    prompt: int  # the longest prompt
    slots: int = 1  # generations at the same time


@dataclass(frozen=True, slots=True)
class Spelled:
    """A stretch of a prompt: the name of one special token, or text without special tokens. IMAGE_PLACE marks a picture."""

    text: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as token ids and as messages; each runtime reads the form that its engine takes."""

    token_ids: tuple[int, ...]
    request: ChatRequest  # messages as trimmed to fit
    spelled: tuple["Spelled", ...] = ()  # the prompt as text; set only when it has pictures, which have no ids


@dataclass(frozen=True, slots=True)
class Prefill:
    """Progress of the prefill. A runtime may yield any number before the first Piece; each counts as a sign of life."""

    prompt_tokens: int
    cached_tokens: int  # ids that the KV cache held, not computed again


@dataclass(frozen=True, slots=True)
class Piece:
    """The output of one decode step. The text may be empty (part of a character); the last piece has a finish reason.

    `token_ids` may be incomplete where an engine does not report all; `token_count` is always exact.
    """

    text: str = ""
    token_count: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0  # set in the last piece when only the engine can count them: pictures


@dataclass(frozen=True, slots=True)
class HeldIds:
    """A conversation in the KV cache."""

    ids: tuple[int, ...]
    partly: bool = False  # whether a prompt that shares only a beginning can reuse that beginning


LoadProgress = Callable[[str], None]  # "loading 17/31": for the log, the terminal and /health


class Runtime(ABC):
    capabilities: Capabilities
    fails_as_one: ClassVar[bool] = True  # a generation that fails tells that the engine is lost

    @abstractmethod
    async def start(self, progress: LoadProgress) -> Limits:
        """Start, and return when a prompt can be taken. Raises StartFailed and leaves no process behind."""

    @abstractmethod
    def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        """Generate until the model ends the reply or max_tokens are reached. The last item is a Piece with finish_reason.

        An async generator: closing it (aclose) stops the work and returns when the engine is idle again
        or known to be lost, or when still_running() tells. Raises a RuntimeFailure when the engine fails.
        """

    @abstractmethod
    async def failed(self) -> RuntimeFailure:
        """Wait until the process has died or cannot be trusted any more, busy or idle. Returns the reason."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop politely, then by force. Idempotent; afterwards no process is left."""

    def still_running(self) -> asyncio.Future[bool] | None:
        """Done when what a closed generator has left behind has ended, where an engine cannot be stopped."""
        return None

    async def warm(self, prompt: Prompt) -> bool:  # noqa: ARG002
        """Prefill the prompt, so that a prompt which begins with it continues the KV cache. Call it only while nothing runs.

        Returns False when it was not done. Raises a RuntimeFailure when the engine fails.
        """
        return False

    def has_room(self, prompt: Prompt) -> bool:  # noqa: ARG002
        """Whether it can begin this prompt beside what it generates now, where a slot is free."""
        return True

    def warming_loses(self, prompt: Prompt) -> float | None:  # noqa: ARG002
        """How many ids of other conversations warm() would overwrite, each counted by the chance that it goes on.

        None: all that is held, for the cache has room for one conversation.
        """
        return None

    def reusable_tokens(self, prompt: Prompt) -> int:  # noqa: ARG002
        """Count the first ids of this prompt that the KV cache holds. The scheduler prefers the device with the most."""
        return 0

    def held_ids(self) -> Sequence[HeldIds] | None:
        """What the KV cache holds, as far as it is certain; None: this runtime cannot tell."""
        return None


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the first ids that both have."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
