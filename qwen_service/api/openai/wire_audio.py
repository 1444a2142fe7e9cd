"""The bodies of OpenAI's audio routes."""

from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

Short = Annotated[str, StringConstraints(max_length=200)]


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
