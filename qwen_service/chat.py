"""The neutral vocabulary: all dialects translate into it, all runtimes are driven with it.

Frozen values, no behaviour, no wire format. All durations are in seconds, all counts in tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]
Priority = Literal["interactive", "background"]
# What a prompt is before it is tokenized: plain text (never parsed for special tokens) and ids of special
# tokens, in order. User text can therefore not smuggle in a control token.
PromptParts = Sequence[str | int]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made: an event in a stream, and a part of a message when the client sends it back."""

    id: str
    name: str
    arguments: str = "{}"  # JSON text of an object


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as the client sent it, not decoded. Its type and size are read from its header."""

    media_type: str
    data: bytes
    width: int
    height: int
    digest: str  # identifies the picture


# The tokens that are reserved for a picture: about what the encoders of small models make of one. Only the engine
# knows the true number.
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
    moved: bool = False  # a system message that the service put here; trimming keeps it with the next message


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
    """How to pick tokens. None: the client did not say, so the default of the model or engine applies."""

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
    context: tuple[int, ...] = ()  # Ollama's `context`: ids of the conversation so far, which come before `messages`
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    moved_lines: int = 0  # lines of the system message that now stand before the user's last message (stable_prefix)
    continues: bool = False  # the reply continues the last message, which is the assistant's
    truncate: bool = True  # False: an overflowing conversation is refused instead of trimmed
    context_size: int | None = None  # the client's own bound on prompt + completion, smaller than the model's
    keep_alive: float | None = None  # seconds that the model stays loaded after this request; inf: for ever
    priority: Priority = "interactive"
    client: str = ""  # who asks, for fairness: API key name or address
    session: str = ""  # what the client calls this conversation: a hint to where it ran before


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """`token_bytes` are the exact bytes; `token` shows them as text, which may be part of a character."""

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
    moved_lines: int = 0  # lines of the system message that were shown before the user's last message (stable_prefix)


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
    stop_string: str | None = None  # the stop string that ended the reply


Event = Started | TextDelta | ReasoningDelta | ToolCall | Finished
