"""The request bodies of Anthropic's Messages API that the service reads, as pydantic models.

Fields that are not here are accepted and ignored. docs/api.md says how each field is treated, and a test compares
that list with these models.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from qwen_service.api.wire import Count, Finite, Messages, Name, Parts, StopTexts, Tools, Wire, example


class ErrorDetail(Wire):
    type: str
    message: str


class ErrorReply(Wire):
    type: Literal["error"]
    error: ErrorDetail
    request_id: str


class Source(Wire):
    """The source of an image block."""

    type: str = Field("", max_length=64)
    media_type: str | None = Field(None, max_length=64, description="Ignored: the picture's own bytes tell.")
    data: str | None = None
    url: str | None = None


class Block(Wire):
    """A content block of any type; request.py says which fields each type needs."""

    type: str = Field(max_length=64)
    text: str | None = None
    thinking: str | None = None
    id: Name | None = None
    name: Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Name | None = None
    content: "str | Parts[Block] | None" = None
    is_error: bool | None = None
    source: Source | None = None


Blocks = Parts[Block]
Block.model_rebuild()


class InputMessage(Wire):
    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class ToolSpec(Wire):
    """A tool. One with a `type` other than custom is Anthropic's own: it has no schema and is skipped."""

    type: str | None = Field(None, pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")
    name: str = Field(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoiceSpec(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingSpec(Wire):
    type: Literal["enabled", "disabled", "adaptive"]


class OutputFormatSpec(Wire):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Wire):
    format: OutputFormatSpec | None = None


class CountTokensBody(Wire):
    """The fields that make the prompt."""

    model: Name | None = None
    messages: Messages[InputMessage] = Field(min_length=1)
    system: str | Blocks | None = None
    tools: Tools[ToolSpec] | None = None
    tool_choice: ToolChoiceSpec | None = None
    thinking: ThinkingSpec | None = None
    output_config: OutputConfig | None = None


class MessagesBody(CountTokensBody):
    model_config = example(model="qwen3-4b", max_tokens=256, messages=[{"role": "user", "content": "Hello!"}])
    max_tokens: Count | None = None
    stop_sequences: StopTexts | None = None
    stream: bool | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None


# For /docs: further answers of the routes.
ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorReply, "description": "Why the request was refused; docs/api.md"}
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A message; with `stream`, its events",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}
