"""The types that request bodies of all dialects share, and the bounds on one body.

Every list has a bound and stops at its first fault: without that, pydantic collects an error for each item and each
member of a union, and 4 MB of wrong items cost a minute and gigabytes.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MOST_MESSAGES = 20_000  # `max_messages` cannot be set higher
MOST_PARTS = 20_000  # in all messages of a request together
MOST_TOOLS = 128
MOST_IDS = 262_144
MOST_TEXTS = 2048  # to embed or to complete, in one request; OpenAI's bound for embeddings
MOST_STOPS = 64
MOST_BIASES = 1024
MOST_VALUES = 32  # entries of a small object, such as chat_template_kwargs

T = TypeVar("T")


class Wire(BaseModel):
    """The base of all body models. Unknown fields are accepted and ignored, as all three vendors do."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


def example(**body: Any) -> ConfigDict:
    """The example body in /docs."""
    return ConfigDict(json_schema_extra={"examples": [body]})


def _few_parts(messages: Any) -> Any:
    """Count the parts before models are built of them: a model takes 20 times the bytes of its part."""
    if isinstance(messages, list):
        lists = (value for message in messages if isinstance(message, dict) for value in message.values())
        parts = sum(len(value) for value in lists if isinstance(value, list))
        if parts > MOST_PARTS:
            raise ValueError(f"{parts} parts and tool calls, at most {MOST_PARTS} are allowed in a request")
    return messages


Messages = Annotated[list[T], Field(max_length=MOST_MESSAGES, fail_fast=True), BeforeValidator(_few_parts)]
Parts = Annotated[list[T], Field(max_length=MOST_PARTS, fail_fast=True)]
Tools = Annotated[list[T], Field(max_length=MOST_TOOLS, fail_fast=True)]
Texts = Annotated[list[T], Field(max_length=MOST_TEXTS, fail_fast=True)]

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]  # any 64 bits, signed or not
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(max_length=MOST_IDS, fail_fast=True)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Name = Annotated[str, Field(max_length=256)]
StopText = Annotated[str, Field(max_length=1024)]
StopTexts = Annotated[list[StopText], Field(max_length=MOST_STOPS, fail_fast=True)]
Stop = StopText | StopTexts
LogitBias = Annotated[
    dict[str, Annotated[Finite, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASES, fail_fast=True)
]
SmallObject = Annotated[dict[str, Any], Field(max_length=MOST_VALUES)]
