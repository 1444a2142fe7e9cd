"""What OpenAI's routes answer: the page /docs shows these fields.

The answers are made elsewhere. Tests hold them to this, and to the types of the package openai.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls"]


class Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class TokenLogprob(Reply):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class Logprobs(Reply):
    content: list[ChosenLogprob]
    refusal: None


class CalledFunction(Reply):
    name: str
    arguments: str


class CallReply(Reply):
    id: str
    type: Literal["function"]
    function: CalledFunction


class CallDelta(CallReply):
    index: int


class MessageReply(Reply):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[CallReply] | None = None


class Delta(Reply):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class CachedTokens(Reply):
    cached_tokens: int


class ReasoningTokens(Reply):
    reasoning_tokens: int


class UsageReply(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class ChatChoice(Reply):
    index: int
    message: MessageReply
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChunkChoice(Reply):
    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply


class ChatCompletionChunk(Reply):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageReply | None = None


class CompletionLogprobs(Reply):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(Reply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageReply | None = None


class ModelEntry(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    state: Literal["loaded", "loading", "failed", "installed"]
    runtime: str
    capabilities: list[str]
    version: str
    size: int
    parent: str | None
    stopgap: str | None
    context: int | None
    prompt_limit: int | None
    sampling: list[str]


class ModelList(Reply):
    object: Literal["list"]
    data: list[ModelEntry]


class ErrorDetail(Reply):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorReply, "description": "Why the request was refused; docs/api.md"}
}


def answers(model: type[Reply], *, chunk: type[Reply] | None = None) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`; `chunk` is what a stream's events carry."""
    answer: dict[str, Any] = {"model": model, "description": f"{model.__name__}"}
    if chunk is not None:
        answer["description"] += f"; with `stream`, events with a {chunk.__name__} each, then `data: [DONE]`"
        answer["content"] = {"text/event-stream": {}}
    return {200: answer}
