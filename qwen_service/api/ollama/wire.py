"""The request bodies of Ollama's API that we read, as pydantic models; also the source of /docs.

Unknown fields are accepted and ignored, as Ollama does; docs/api.md lists what is honoured, refused and ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from qwen_service.api.wire import Finite, Ids, Messages, Name, Parts, Seed, Stop, Texts, Tools, Wire, example

KeepAlive = Annotated[int | float | str, Field(union_mode="left_to_right")]
ModelName = Annotated[str, Field(max_length=256, validation_alias=AliasChoices("model", "name"))]
Text = str | None


class Options(Wire):
    num_ctx: Annotated[int, Field(ge=0)] | None = Field(None, description="Capped at the model's own context.")
    num_predict: int | None = Field(None, description="-1 and -2: until the model or the context ends.")
    seed: Seed | None = None
    temperature: Annotated[Finite, Field(ge=0)] | None = None
    top_p: Annotated[Finite, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[Finite, Field(ge=0, le=10)] | None = None
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    stop: Stop | None = None
    # Sampling options that no engine here offers: named in X-Ignored-Parameters. Options about loading are ignored silently.
    typical_p: Finite | None = Field(None, description="Ignored.")
    tfs_z: Finite | None = Field(None, description="Ignored.")
    repeat_last_n: int | None = Field(None, description="Ignored.")
    mirostat: int | None = Field(None, description="Ignored.")
    mirostat_tau: Finite | None = Field(None, description="Ignored.")
    mirostat_eta: Finite | None = Field(None, description="Ignored.")
    penalize_newline: bool | None = Field(None, description="Ignored.")


IGNORED_OPTIONS = tuple(name for name, field in Options.model_fields.items() if field.description == "Ignored.")


class CallFunction(Wire):
    name: Name
    arguments: dict[str, Any] | str | None = None


class CallPart(Wire):
    id: Name | None = None
    function: CallFunction


class ChatMessage(Wire):
    role: Literal["system", "user", "assistant", "tool"]
    content: Text = None
    thinking: Text = None
    images: Parts[str] | None = Field(None, description="Base64, for models that see.")
    tool_calls: Parts[CallPart] | None = None
    tool_name: Name | None = None
    tool_call_id: Name | None = None


class ToolFunction(Wire):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")
    description: Text = None
    parameters: dict[str, Any] | None = None


class ToolSpec(Wire):
    type: str = "function"
    function: ToolFunction


class GenerationFields(Wire):
    """The fields that /api/chat and /api/generate share."""

    model: ModelName
    stream: bool | None = Field(None, description="Ollama streams unless told not to.")
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | Literal["low", "medium", "high", "max", ""] | None = None
    keep_alive: KeepAlive | None = None
    truncate: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class ChatBody(GenerationFields):
    model_config = example(model="qwen3-4b", messages=[{"role": "user", "content": "Hello!"}])
    messages: Messages[ChatMessage] | None = None
    tools: Tools[ToolSpec] | None = None


class GenerateBody(GenerationFields):
    model_config = example(model="qwen3-4b", prompt="Hello!")
    prompt: Text = None
    suffix: Text = None
    system: Text = None
    template: Text = Field(None, description="Refused unless empty: templates come with the model.")
    context: Ids | None = None
    raw: bool | None = None
    images: Parts[str] | None = Field(None, description="Base64, for models that see.")


class ShowBody(Wire):
    model: ModelName
    verbose: bool | None = Field(None, description="Ignored.")


class PullBody(Wire):
    model: ModelName
    stream: bool | None = None
    insecure: bool | None = Field(None, description="Ignored: every file is checked.")


class FirstMessage(Wire):
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=100_000)]


class CreateBody(Wire):
    model_config = example(model="mario", system="You are Mario.", **{"from": "qwen3-4b"})
    model: ModelName
    from_: Annotated[str, Field(max_length=256)] | None = Field(
        None, alias="from", description="The model it stands on."
    )
    system: Annotated[str, Field(max_length=100_000)] | None = None
    parameters: Options | None = None
    messages: Annotated[list[FirstMessage], Field(max_length=256, fail_fast=True)] | None = None
    stream: bool | None = None
    template: Text = Field(None, description="Refused unless empty: templates come with the model.")
    license: Any = Field(None, description="Ignored.")
    files: Any = Field(None, description="Refused unless empty: this service takes no files.")
    adapters: Any = Field(None, description="Refused unless empty.")
    quantize: Text = Field(None, description="Refused unless empty.")
    modelfile: Text = Field(None, description="Refused: clients read a Modelfile themselves since 2024.")


class CopyBody(Wire):
    source: Annotated[str, Field(max_length=256)]
    destination: Annotated[str, Field(max_length=256)]


class DeleteBody(Wire):
    model: ModelName


class EmbedBody(Wire):
    model_config = example(model="qwen3-4b", input="Hello!")
    model: ModelName
    input: str | Texts[str]
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    keep_alive: KeepAlive | None = Field(None, description="Ignored.")


class EmbeddingsBody(Wire):
    model_config = example(model="qwen3-4b", prompt="Hello!")
    model: ModelName
    prompt: str
    keep_alive: KeepAlive | None = Field(None, description="Ignored.")
