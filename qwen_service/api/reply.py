"""What the replies of all dialects have in common: JSON, the headers, and how an error becomes an answer."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from starlette.responses import Response

from qwen_service.chat import Started
from qwen_service.errors import Busy, EncodedBody, ServiceError

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a family of clients is answered. `media_type`, `error_chunk` and `ping` are those of a stream."""

    error_response: Callable[[ServiceError], Response]
    media_type: str
    error_chunk: Callable[[ServiceError], bytes]
    ping: bytes = b""


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def error_answer(error: ServiceError, status: int, body: Mapping[str, Any]) -> Response:
    """`body` with the headers that tell a client how to try again."""
    headers = {}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, EncodedBody):
        headers["Accept-Encoding"] = "identity"
    return json_response(body, status, headers)


def entry_of(error: ServiceError, table: Mapping[type[ServiceError], V]) -> V:
    """Of its class, or of the nearest one above that has an entry."""
    return next(table[kind] for kind in type(error).__mro__ if kind in table)


LONGEST_LIST = (
    1000  # characters of a list in a header: clients and proxies accept 4 kB to 8 kB for all headers together
)


class ReplyHeaders:
    """Makes the headers when they are sent. `started` is set by then, unless the reply is slow to begin."""

    def __init__(self, ignored_parameters: Sequence[str] = ()) -> None:
        self._ignored_parameters = tuple(ignored_parameters)  # those that the dialect itself ignored
        self.started: Started | None = None

    def __call__(self) -> dict[str, str]:
        ignored, headers = self._ignored_parameters, {}
        if self.started is not None:
            headers["X-Served-By"] = self.started.served_by
            ignored += self.started.ignored_parameters
            if self.started.trimmed_messages:
                headers["X-Context-Trimmed-Messages"] = str(self.started.trimmed_messages)
            if self.started.moved_lines:
                headers["X-Prompt-Moved-Lines"] = str(self.started.moved_lines)
        if ignored:
            headers["X-Ignored-Parameters"] = _listed(ignored)
        return headers


def _listed(names: Sequence[str]) -> str:
    """Join the names; when a header cannot hold all, end with the number of the missing ones."""
    shown = list(names)
    while len(", ".join(shown)) > LONGEST_LIST:
        shown.pop()
    more = len(names) - len(shown)
    return ", ".join([*shown, f"and {more} more"] if more else shown)
