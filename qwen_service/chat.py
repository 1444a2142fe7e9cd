"""The neutral vocabulary that all dialects translate into and every runtime is driven with.

Frozen values, no behaviour, no wire format. All durations are in seconds, all counts in tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]
Priority = Literal["interactive", "background"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model made: an event while it streams, a part of a message when it comes back."""

    id: str
    name: str
    arguments: str = "{}"  # JSON text of an object


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as the client sent it, not decoded; type and pixels as its header has them."""

    media_type: str
    data: bytes
    width: int
    height: int
    digest: str  # tells it from another


# What room is kept for a picture, in tokens: about what the encoders of small models make of one. Its true number
# is the engine's to tell.
IMAGE_TOKENS = 256
IMAGE_PLACE = "\U000ffffd"  # a private-use character: where a picture stands in a prompt


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    images: tuple[Image, ...] = ()  # before the text
    moved: bool = False  # a system message that the service has put here: it belongs to the next message


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  # JSON schema of the arguments object


@dataclass(frozen=True, slots=True)
class NamedTool:
    name: str


ToolChoice = Literal["auto", "none", "required"] | NamedTool


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """The reply must be JSON; with a schema, JSON that satisfies it. None on a request means free text."""

    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """None means: not asked for, the model's or engine's default holds."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None  # None: no logprobs; 0: of the chosen token only
    grammar: str | None = None  # GBNF or %llguidance, made by us, never by a client
    json_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One generation. Either `messages`, rendered by the model's template, or a raw `prompt` used as it is."""

    id: str
    model: str | None = None
    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    suffix: str | None = None  # fill-in-the-middle, with `prompt`
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    response_format: JsonFormat | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    thinking: bool | None = None  # None: the model's manifest decides
    must_think: bool = False  # a model that cannot think refuses the request
    context: tuple[int, ...] = ()  # ids of the conversation so far, which the client has kept; before `messages`
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    moved_lines: int = 0  # of system messages, that stand before the last message of the user instead
    continues: bool = False  # the reply goes on with the last message, which is an assistant's
    truncate: bool = True  # False: an overflowing conversation is refused instead of trimmed
    context_size: int | None = None  # a client's own, smaller bound on prompt + completion
    keep_alive: float | None = None  # seconds that the model stays loaded after this; inf: for ever
    priority: Priority = "interactive"
    client: str = ""  # who asks, for fairness: API key name or address


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """`token_bytes` are the token's own bytes: `token` may be half of a character."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens, those the KV cache already held
    reasoning_tokens: int = 0  # of the completion tokens, those spent on thinking


@dataclass(frozen=True, slots=True)
class Timings:
    load: float = 0.0  # waiting for the model to be loaded
    queue: float = 0.0
    prefill: float = 0.0
    generation: float = 0.0


@dataclass(frozen=True, slots=True)
class Started:
    """First event of every stream: who answers, and what was changed about the request."""

    model: str
    trimmed_messages: int = 0
    ignored_parameters: tuple[str, ...] = ()
    served_by: str = ""  # the runtime's name, and "fallback" where the CPU stands in for the card
    fallback: bool = False
    prompt_tokens: int = 0
    moved_lines: int = 0  # of system messages, that were shown before the last message of the user instead


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    usage: Usage
    timings: Timings = Timings()
    token_ids: tuple[int, ...] = ()  # prompt and completion, where the runtime knows them
    stop_string: str | None = None  # of the request, where one of them ended the reply


Event = Started | TextDelta | ReasoningDelta | ToolCall | Finished
