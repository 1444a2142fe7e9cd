"""What is wrong with a body, as pydantic found it: which field, and in which words."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi.exceptions import RequestValidationError


@dataclass(frozen=True, slots=True)
class BodyFault:
    """`field` is empty where the body as a whole is wrong; `kind` is pydantic's name of the fault."""

    field: str
    kind: str
    message: str


def first_fault(error: RequestValidationError) -> BodyFault:
    found = error.errors()
    # A union has several: those of its members of other types tell nothing.
    first = next((entry for entry in found if not entry["type"].endswith(("_type", "_parsing"))), found[0])
    if first["type"] == "json_invalid":
        return BodyFault("", "json_invalid", f"the body is not valid JSON: {first['ctx']['error']}")
    return BodyFault(_field(first["loc"][1:]), first["type"], first["msg"])


_TYPE_NAMES = ("str", "int", "float", "bool", "dict", "NamedToolChoice")


def _field(location: Sequence[str | int]) -> str:
    """messages[0].content; without the names of types that pydantic adds for the members of a union."""
    names = [part for part in location if isinstance(part, int) or (part.isidentifier() and part not in _TYPE_NAMES)]
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).lstrip(".")
