"""The request bodies of OpenAI's API that we read, as pydantic models; also the source of /docs.

Fields that are not here are accepted and ignored, as OpenAI does. What is honoured, refused and ignored is listed in
docs/api.md, and a test compares that list with these models.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from qwen_service.api.wire import (
    Count,
    Finite,
    Ids,
    LogitBias,
    Messages,
    Name,
    Parts,
    Seed,
    SmallObject,
    Stop,
    Texts,
    Tools,
    Wire,
    example,
)

Penalty = Annotated[Finite, Field(ge=-2, le=2)]
Limit = Count | Literal[-1]  # -1 (no limit) is not OpenAI's, but other local servers accept it, so apps send it
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
TextToEmbed = Annotated[str, Field(min_length=1)]
IdsToEmbed = Annotated[Ids, Field(min_length=1)]
Short = Annotated[str, StringConstraints(max_length=200)]


class ImageUrl(Wire):
    url: str
    detail: str | None = Field(None, description="Ignored.")


class ContentPart(Wire):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | str | None = Field(None, description="A data: URI; nothing is ever fetched.")


class FunctionCall(Wire):
    name: Name
    arguments: str | dict[str, Any] | None = None


class ToolCallPart(Wire):
    id: str = Field("", max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts[ContentPart] | None = None
    reasoning_content: str | None = None
    tool_calls: Parts[ToolCallPart] | None = None
    tool_call_id: Name | None = None
    name: Name | None = None


class FunctionSpec(Wire):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(Wire):
    type: Literal["function"] = "function"
    function: FunctionSpec


class NamedFunction(Wire):
    name: str


class NamedToolChoice(Wire):
    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchemaFormat(Wire):
    name: str = Field("response", max_length=128)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="Of a json_object, as llama.cpp has it.")


class StreamOptions(Wire):
    include_usage: bool | None = None


class Reasoning(Wire):
    effort: Effort | None = None


class SamplingFields(Wire):
    """The fields that chat and plain completions share."""

    model: Name | None = None
    max_tokens: Limit | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Ignored.")


class ChatFields(Wire):
    """The fields of chats; optional in a plain completion that has `messages`."""

    max_completion_tokens: Limit | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Tools[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: SmallObject | None = None
    prompt_cache_key: str | None = None
    functions: Any = Field(None, description="Refused: use tools.")
    function_call: Any = Field(None, description="Refused: use tool_choice.")
    modalities: Texts[str] | None = Field(None, description='Only ["text"]; anything else is refused.')
    audio: Any = Field(None, description="Refused.")


class ChatCompletionBody(SamplingFields, ChatFields):
    model_config = example(model="qwen3-4b", messages=[{"role": "user", "content": "Hello!"}], stream=True)
    messages: Messages[ChatMessage] = Field(min_length=1)
    logprobs: bool | None = None


class CompletionBody(SamplingFields, ChatFields):
    model_config = example(model="qwen3-4b", prompt="Once upon a time", max_tokens=32)
    prompt: str | Texts[str] | Ids | Texts[Ids] | None = None
    messages: Messages[ChatMessage] | None = Field(None, min_length=1)
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = Field(None, description="Refused unless equal to n.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | bool | None = None


class EmbeddingsBody(Wire):
    model_config = example(model="qwen3-4b", input="Hello!")
    model: Name | None = None
    input: TextToEmbed | IdsToEmbed | Annotated[Texts[TextToEmbed] | Texts[IdsToEmbed], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = Field(None, description="Ignored.")


class VoiceId(BaseModel):
    id: Short


class SpeechBody(BaseModel):
    model_config = ConfigDict(extra="ignore")

    input: str
    model: Short | None = None
    voice: Short | VoiceId | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    speed: Annotated[float, Field(ge=0.25, le=4.0)] | None = None
    instructions: str | None = None
    stream_format: Literal["audio", "sse"] | None = None


class TranscriptionFields(BaseModel):
    """The fields of the form, beside the file."""

    model_config = ConfigDict(extra="ignore")

    model: Short = ""
    language: Annotated[str, StringConstraints(pattern=r"^([A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*)?$", max_length=20)] = (
        ""
    )
    prompt: str = ""
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt", "diarized_json"] = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool = False


def form_fields(texts: Mapping[str, str]) -> TranscriptionFields:
    """Read the fields of a form. Raises RequestValidationError, as FastAPI does for a JSON body."""
    try:
        return TranscriptionFields.model_validate(texts)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from None
