"""The request body of OpenAI's Responses API that the service reads, as pydantic models.

Fields that are not here are accepted and ignored. docs/api.md says how each field is treated, and a test compares
that list with these models.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from qwen_service.api.openai.wire import Effort, Limit
from qwen_service.api.wire import Finite, Messages, Name, Parts, Texts, Tools, Wire, example

MetadataValue = Annotated[str, Field(max_length=512)]


class Part(Wire):
    """A part of a message, of a tool's output, or of a summary; input_items.py says which types it takes."""

    type: str = Field(max_length=64)
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None


class Item(Wire):
    """An input item of any type; without a type it is a message. input_items.py says what each type needs."""

    type: str | None = Field(None, max_length=64)
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Parts[Part] | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: str | None = None
    output: str | Parts[Part] | None = None
    summary: Parts[Part] | None = None


class ToolSpec(Wire):
    """A tool. One that is not a function is skipped, so its fields are not checked."""

    type: str = Field(max_length=64)
    name: Name | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class AllowedTool(Wire):
    type: str = Field(max_length=64)
    name: Name | None = None


class ToolChoiceSpec(Wire):
    type: str = Field(max_length=64)
    name: Name | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Tools[AllowedTool] | None = None


class TextFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=128)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class TextConfig(Wire):
    format: TextFormat | None = None


class ReasoningConfig(Wire):
    effort: Effort | None = None
    summary: str | None = Field(None, max_length=64)


class ResponsesBody(Wire):
    model_config = example(model="qwen3-4b", input="Hello!", stream=True)
    model: Name | None = None
    input: str | Messages[Item] = Field(description="A text, or a list of items.")
    instructions: str | None = None
    tools: Tools[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceSpec | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Limit | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Texts[Annotated[str, Field(max_length=128)]] | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    prompt_cache_key: str | None = None
    stream: bool | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], MetadataValue], Field(max_length=16)] | None = None
    previous_response_id: Any = Field(None, description="Refused: nothing is stored.")
    conversation: Any = Field(None, description="Refused: nothing is stored.")
    background: bool | None = Field(None, description="Refused where it is true.")
    prompt: Any = Field(None, description="Refused: nothing is stored.")
    store: bool | None = Field(None, description="Ignored: nothing is stored.")
    user: str | None = Field(None, description="Ignored.")


# For /docs: the answers of the route, without errors.
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A response; with `stream`, its events",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}
