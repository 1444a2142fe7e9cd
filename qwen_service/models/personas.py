"""Personas: a model under another name, with its own system message, first messages and sampling.

`ollama create` makes them. Each is a small JSON file in `<models_dir>/personas`, read once at the start.
"""

import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from qwen_service.chat import ChatRequest, Message, Role, Sampling
from qwen_service.errors import InstallError, InvalidRequest
from qwen_service.models.catalog import plain_name

log = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(?::[a-z0-9._-]{1,64})?")
MOST = 1000  # most personas of one service
# The parameters that a persona may set: Ollama's name -> ours.
_SAME = ("temperature", "top_p", "top_k", "min_p", "seed", "repeat_penalty", "presence_penalty", "frequency_penalty")
SAMPLING = {name: name for name in _SAME} | {"num_predict": "max_tokens"}


@dataclass(frozen=True, slots=True)
class Persona:
    """One persona. `parameters` have Ollama's names: those of SAMPLING, `num_ctx`, and `stop`, a list."""

    name: str
    base: str
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[tuple[Role, str], ...] = ()
    modified: float = 0.0  # seconds since 1970

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def applied(self, request: ChatRequest) -> ChatRequest:
        """Turn a request to the persona into one to its model. Values in the request win over the persona's."""
        given = request.sampling
        missing = {
            ours: self.parameters[name]
            for name, ours in SAMPLING.items()
            if name in self.parameters and getattr(given, ours) is None
        }
        return dataclasses.replace(
            request,
            model=self.base,
            messages=self._with_first(request.messages),
            sampling=dataclasses.replace(given, **_positive(missing)),
            stop=request.stop or tuple(self.parameters.get("stop", ())),
            context_size=request.context_size or self.parameters.get("num_ctx"),
        )

    def _with_first(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not messages:  # a raw prompt
            return messages
        first = tuple(Message(role, content) for role, content in self.messages)
        own, rest = (messages[:1], messages[1:]) if messages[0].role == "system" else ((), messages)
        system = own or ((Message("system", self.system),) if self.system else ())
        return (*system, *first, *rest)


class Personas:
    def __init__(self, folder: Path | None = None) -> None:
        """Without a folder there are no personas, and none can be made."""
        self._folder = folder
        self._by_name: dict[str, Persona] = {}

    @classmethod
    def load(cls, models_dir: Path) -> "Personas":
        """Read all personas. A file that cannot be read is logged and left out."""
        personas = cls(models_dir / "personas")
        for path in sorted((models_dir / "personas").glob("*.json")):
            try:
                persona = _read(path)
            except (OSError, ValueError, TypeError, LookupError) as error:
                log.warning("The file %s is no persona and is left out: %s", path, error)
            else:
                personas._by_name[persona.name] = persona
        return personas

    def all(self) -> list[Persona]:
        return list(self._by_name.values())

    def find(self, name: str | None) -> Persona | None:
        return self._by_name.get(plain_name(name)) if name else None

    def base_of(self, name: str) -> str:
        """The name of a persona's model; for other names the name itself."""
        persona = self.find(name)
        return persona.base if persona is not None else name

    def applied(self, request: ChatRequest) -> ChatRequest:
        persona = self.find(request.model)
        return persona.applied(request) if persona is not None else request

    def put(self, persona: Persona) -> Persona:
        """Make or replace a persona. Raises InvalidRequest or InstallError."""
        name = plain_name(persona.name)
        if not NAME.fullmatch(name):
            expected = "expected letters, digits and . _ - only, and perhaps a tag after a colon"
            raise InvalidRequest(f"{persona.name[:80]!r} cannot be a name: {expected}.", param="model")
        if self._folder is None or (len(self._by_name) >= MOST and name not in self._by_name):
            raise InvalidRequest(
                f"{name} cannot be made: {MOST} personas are the most that this service keeps. Delete one.",
                param="model",
            )
        made = dataclasses.replace(persona, name=name, modified=time.time())
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._folder / f".{_file_name(name)}.new"
            draft.write_text(json.dumps(asdict(made), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            draft.replace(self._folder / _file_name(name))
        except OSError as error:
            raise InstallError(f"{name} cannot be written to {self._folder}: {error.strerror}") from error
        self._by_name[name] = made
        return made

    def remove(self, persona: Persona) -> None:
        """Raises InstallError."""
        assert self._folder is not None, "somebody has made it"
        try:
            (self._folder / _file_name(persona.name)).unlink(missing_ok=True)
        except OSError as error:
            raise InstallError(f"{persona.name} cannot be removed: {error.strerror}") from error
        self._by_name.pop(persona.name, None)


def _file_name(name: str) -> str:
    return f"{name.replace(':', '@')}.json"


def _positive(values: dict[str, Any]) -> dict[str, Any]:
    """Drop negative numbers: -1 and -2 of num_predict, and a negative seed, mean the default."""
    return {name: value for name, value in values.items() if name not in ("max_tokens", "seed") or value > 0}


def _read(path: Path) -> Persona:
    content = json.loads(path.read_text(encoding="utf-8"))
    messages = tuple((role, text) for role, text in content["messages"])
    if any(role not in get_args(Role) or not isinstance(text, str) for role, text in messages):
        raise ValueError("messages are pairs of a role and a text")
    unknown = set(content["parameters"]) - {*SAMPLING, "num_ctx", "stop"}
    if unknown:
        raise ValueError(f"unknown parameters: {', '.join(sorted(unknown))}")
    Sampling(**{SAMPLING[name]: value for name, value in content["parameters"].items() if name in SAMPLING})
    persona = Persona(**{**content, "messages": messages})
    if not (NAME.fullmatch(persona.name) and isinstance(persona.base, str) and isinstance(persona.system, str)):
        raise ValueError("name, base and system are texts")
    return persona
