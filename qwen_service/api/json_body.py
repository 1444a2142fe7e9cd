"""Parses request bodies as JSON, makes all text valid Unicode, and bounds the memory that a body can cost.

`explain` turns pydantic's errors about a body into one fault: which field, and what is wrong with it.
"""

import json
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from qwen_service.errors import InvalidRequest, RequestTooLarge, ServiceError

# Most values in a body; a number counts as a quarter. A list of 2 bytes takes 60 bytes of memory, a key 100.
FREE_VALUES = 20_000
BYTES_PER_VALUE = 24
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
STRING = re.compile(rb'"(?:[^"\\]+|\\.)*+"', re.DOTALL)
# An escaped backslash, a pair of surrogates, or a lone surrogate; only the last is replaced.
MOST_SURROGATES = 100_000
HALF_SURROGATE = re.compile(
    rb"(\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
_TYPE_NAMES = ("str", "int", "float", "bool", "dict", "NamedToolChoice")


class JsonRequest(Request):
    async def json(self) -> Any:
        return parse(await self.body())


class JsonRoute(APIRoute):
    """A route whose body is read by parse()."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(JsonRequest(request.scope, request.receive))
            except HTTPException as error:
                if isinstance(error.__cause__, ServiceError):  # FastAPI wraps everything that json() raises
                    raise error.__cause__ from None
                raise

        return handle


def parse(body: bytes) -> Any:
    """Parse a body. Raises json.JSONDecodeError, or RequestTooLarge for too many values in a body of this size.

    A lone surrogate, which JSON can write and UTF-8 cannot, becomes U+FFFD, as in browsers; a body with
    more than MOST_SURROGATES of them is refused.
    """
    body = body.removeprefix(BYTE_ORDER_MARK)
    _refuse_too_many_values(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if b"NaN" in body or b"Infinity" in body:
            return _with_constants(body)
        if body.count(rb"\ud") + body.count(rb"\uD") > MOST_SURROGATES:
            raise
        repaired = HALF_SURROGATE.sub(lambda found: found[1] or rb"\ufffd", body)
        if repaired == body:
            raise
        return orjson.loads(repaired)


def _with_constants(body: bytes) -> Any:
    """Parse JSON with NaN and Infinity, which Python's json module writes. Numeric fields refuse them later."""
    try:
        return json.loads(body.decode())
    except (RecursionError, ValueError) as error:
        if isinstance(error, json.JSONDecodeError):
            raise
        raise json.JSONDecodeError(str(error), "", 0) from None


def _refuse_too_many_values(body: bytes) -> None:
    most = FREE_VALUES + len(body) // BYTES_PER_VALUE
    values = _values(body)
    if values > most and (strings := (body.count(b'"') - body.count(b'\\"')) // 2) <= most:
        # The quick count includes text inside strings. This one is exact, but slow when there are many strings.
        values = max(strings, _values(STRING.sub(b'""', body)))
    if values > most:
        raise RequestTooLarge(
            f"The body holds about {values} lists, objects, keys and strings (four numbers count as one);"
            f" a body of {len(body)} bytes can hold {most}."
        )


def _values(body: bytes) -> int:
    return 2 * (body.count(b"[") + body.count(b"{")) + body.count(b'":') + body.count(b'",') + body.count(b",") // 4


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
