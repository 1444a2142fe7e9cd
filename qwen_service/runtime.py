"""The seam between the pipeline and everything that can generate tokens.

A runtime drives one process on one device. It is started once, generates as many prompts at a time as it
has slots, and is stopped once; when it fails it is thrown away and another one is made. Restarting, waiting
lines and switching are not its business (model_manager, scheduler).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from qwen_service.chat import ChatRequest, Sampling, TokenLogprob
from qwen_service.errors import RuntimeFailure

# What a prompt is before it is tokenized: plain text (never parsed for special tokens) and ids of special
# tokens, in order. User text can therefore not smuggle in a control token.
PromptParts = Sequence[str | int]


class Tokenizer(Protocol):
    """Of a local tokenizer.json, or of the engine itself over its socket."""

    async def encode(self, parts: PromptParts) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Capabilities:
    sampling: frozenset[str]  # names of the fields of chat.Sampling that are honoured per request
    constrained_output: bool = False  # honours Sampling.json_schema
    grammars: bool = False  # honours Sampling.grammar, too: it has llguidance
    logprobs: bool = False
    kv_reuse: bool = False
    warms: Literal["nothing", "head", "all"] = "nothing"  # what warm() is good for; head: only when it has just started
    infill: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """As the running engine reports them, in tokens."""

    context: int  # prompt + completion of one generation
    prompt: int  # longest prompt it takes
    slots: int = 1  # generations at once


@dataclass(frozen=True, slots=True)
class Spelled:
    """A stretch of a prompt: a special token by its name, or text in which nothing is one. IMAGE_PLACE is a picture's."""

    text: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt in two forms; a runtime reads the one it speaks."""

    token_ids: tuple[int, ...]
    request: ChatRequest  # messages as trimmed to fit
    spelled: tuple["Spelled", ...] = ()  # the prompt as text, only where there are pictures, which have no ids


@dataclass(frozen=True, slots=True)
class Prefill:
    """How far the prompt is. Optional, any number of times, before the first Piece; counts as a sign of life."""

    prompt_tokens: int
    cached_tokens: int  # what the KV cache held and was not computed again
    processed_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step produced. Text may be empty (half a character); the last piece has a finish reason.

    `token_ids` may be incomplete where an engine does not report all; `token_count` is always exact.
    """

    text: str = ""
    token_count: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0  # in the last one, where the engine counts what nobody else can: pictures


@dataclass(frozen=True, slots=True)
class HeldIds:
    """A conversation in the KV cache."""

    ids: tuple[int, ...]
    partly: bool = False  # a prompt that shares only its beginning reuses that beginning


LoadProgress = Callable[[str], None]  # "loading 17/31": for the log, the terminal and /health


class Runtime(ABC):
    capabilities: Capabilities

    @abstractmethod
    async def start(self, progress: LoadProgress) -> Limits:
        """Start and return when a prompt can be taken. Raises StartFailed (and leaves no process behind)."""

    @abstractmethod
    def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        """Generate until the model ends or `sampling.max_tokens`; the last item is a Piece with finish_reason.

        An async generator: closing it (aclose) stops the work and returns when the engine is idle again
        or known to be lost, or when still_running() tells. Raises a RuntimeFailure when the engine fails.
        """

    @abstractmethod
    async def failed(self) -> RuntimeFailure:
        """Return when the process has died or can no longer be trusted, busy or idle, with the reason."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop politely, then by force. Idempotent; afterwards no process is left."""

    def still_running(self) -> asyncio.Future[bool] | None:
        """Done when what a closed generator has left behind has ended, where an engine cannot be stopped."""
        return None

    async def warm(self, prompt: Prompt) -> bool:  # noqa: ARG002
        """Prefill the prompt, so that one that begins with it is a continuation. Nothing else may run meanwhile.

        False: it was not done. Raises a RuntimeFailure when the engine fails.
        """
        return False

    def reusable_tokens(self, prompt: Prompt) -> int:  # noqa: ARG002
        """How many ids of this prompt the KV cache holds: the scheduler prefers the device with the most."""
        return 0

    def held_ids(self) -> Sequence[HeldIds] | None:
        """What the KV cache holds, as far as it is certain; None: this runtime cannot tell."""
        return None
