"""The kinds of value in a manifest: for each its rule, and the words that say what was expected."""

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    WrapValidator,
    with_config,
)
from pydantic_core import PydanticCustomError, core_schema
from typing_extensions import TypedDict

from qwen_service.chat import Sampling

NO_OTHER_KEYS = ConfigDict(extra="forbid")


def given(value: Any) -> Any:
    """A mapping without its empty values: `key:` with nothing behind it is the same as no such line."""
    return {str(key): item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def _expecting(what: str) -> WrapValidator:
    def check(value: object, rule: Callable[[object], object]) -> object:
        try:
            return rule(value)
        except ValidationError:
            raise PydanticCustomError("expected", "{what}", {"what": what}) from None

    return WrapValidator(check)


def _like(regex: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(regex, value):
            raise ValueError
        return value

    return AfterValidator(check)


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or "\\" in value or "\0" in value:
        raise ValueError
    return str(path)


Text = Annotated[StrictStr, AfterValidator(str.strip), _expecting("a text")]
Argument = Annotated[str, Field(coerce_numbers_to_str=True), _expecting("a text or a number")]
Flag = Annotated[StrictBool, _expecting("true or false")]
Scalar = Annotated[StrictBool | StrictInt | StrictFloat, _expecting("a number, true or false")]
Number = Annotated[StrictInt | StrictFloat, Field(ge=0, allow_inf_nan=False), _expecting("a number, 0 or more")]
Positive = Annotated[StrictInt, Field(ge=1), _expecting("a whole number, 1 or more")]
InnerPath = Annotated[StrictStr, AfterValidator(_inside), _expecting("a path inside the model's folder")]
# What becomes a folder name and travels in URLs: nothing that could leave the models folder (CVE-2024-37032).
Name = Annotated[
    StrictStr, _like(r"[a-z0-9][a-z0-9._-]{0,127}"), _expecting("lower-case letters, digits, '.', '_' and '-'")
]
Alias = Annotated[
    StrictStr,
    _like(r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*(?::[a-z0-9._-]+)?"),
    _expecting("a model name such as qwen3 or qwen3:4b"),
]
Sha256 = Annotated[StrictStr, _like(r"[0-9a-f]{64}"), _expecting("64 lower-case hexadecimal digits")]
Commit = Annotated[StrictStr, _like(r"[0-9a-f]{40}"), _expecting("a commit of 40 digits")]
Repository = Annotated[StrictStr, _like(r"[\w.-]+/[\w.-]+"), _expecting("owner/name")]
Requirement = Annotated[StrictStr, _like(r"[\w.-]+==[\w.]+"), _expecting("name==version")]


@with_config(NO_OTHER_KEYS)
class SamplingKeys(TypedDict, total=False):
    max_tokens: Positive
    temperature: Number
    top_p: Number
    top_k: Positive
    min_p: Number
    presence_penalty: Number
    frequency_penalty: Number
    repeat_penalty: Number


def _sampling(values: Mapping[str, Any]) -> Sampling:
    return Sampling(**values)


AsSamplingKeys = GetPydanticSchema(
    lambda _, schema_of: core_schema.no_info_after_validator_function(_sampling, schema_of(SamplingKeys))
)
