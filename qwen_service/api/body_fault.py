"""Turns pydantic's errors about a body into one fault: which field, and what is wrong with it."""

from collections.abc import Sequence

from fastapi.exceptions import RequestValidationError

from qwen_service.errors import InvalidRequest

_TYPE_NAMES = ("str", "int", "float", "bool", "dict", "NamedToolChoice")


def explain(error: RequestValidationError) -> InvalidRequest:
    """The first fault that a person can act on."""
    found = error.errors()
    # A union reports one error for each member; those for members of other types are useless.
    fault = next((entry for entry in found if not entry["type"].endswith(("_type", "_parsing"))), found[0])
    if fault["type"] == "json_invalid":
        return InvalidRequest(f"The body is not valid JSON: {fault['ctx']['error']}")
    field = _field(fault["loc"][1:])
    if not field:
        return InvalidRequest("The body must be a JSON object, sent with Content-Type: application/json.")
    if fault["type"] == "missing":
        return InvalidRequest(f"{field} is required", param=field)
    return InvalidRequest(f"{field}: {fault['msg']}", param=field)


def _field(location: Sequence[str | int]) -> str:
    """Write a location as messages[0].content, without the type names that pydantic adds for members of a union."""
    names = [part for part in location if isinstance(part, int) or (part.isidentifier() and part not in _TYPE_NAMES)]
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).lstrip(".")
