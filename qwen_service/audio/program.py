"""What a speech program is, and what one that is up can be asked. Which of both kinds it is, server.py knows."""

from dataclasses import dataclass
from typing import Protocol

from qwen_service.errors import RuntimeFailure


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class File:
    name: str
    content: bytes
    media_type: str


class SpeechServer(Protocol):
    """A speech server that is up. `models`: the names that it lists; empty when it lists none."""

    models: tuple[str, ...]

    async def post_form(self, path: str, fields: dict[str, str], file: File) -> Answer: ...

    async def post_json(self, path: str, body: dict[str, object]) -> Answer: ...

    async def failed(self) -> RuntimeFailure: ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SpeechProgram:
    """Which program, and where. `place` is the folder of its models, or the URL of a server that runs elsewhere."""

    kind: str  # speech_to_text or text_to_speech
    place: str
    program: str
    has_key: bool  # its program takes --api_key

    @property
    def is_joined(self) -> bool:
        return self.place.startswith(("http://", "https://"))
