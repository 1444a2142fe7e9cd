"""What the replies of all dialects have in common: JSON, the headers, and how an error becomes an answer."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from starlette.responses import Response

from qwen_service import errors
from qwen_service.chat import Started
from qwen_service.errors import ServiceError

V = TypeVar("V")

LONGEST_LIST = (
    1000  # characters of a list in a header: clients and proxies accept 4 kB to 8 kB for all headers together
)

# class -> (status, code). A test demands an entry for every class of the tree. A dialect's errors.py changes the statuses
# that its clients understand otherwise; OpenAI's clients are told the code, too.
ANSWERS: dict[type[ServiceError], tuple[int, str | None]] = {
    errors.ServiceError: (500, None),
    errors.RequestError: (400, None),
    errors.InvalidRequest: (400, "invalid_value"),
    errors.RequestTooLarge: (413, "request_too_large"),
    errors.EncodedBody: (415, "unsupported_encoding"),
    errors.Unsupported: (400, "unsupported"),
    errors.NotOffered: (501, "not_offered"),
    errors.UnknownModel: (404, "model_not_found"),
    errors.NotLoaded: (409, "model_not_loaded"),
    errors.RequestTimedOut: (408, "request_timed_out"),
    errors.PromptTooLong: (400, "context_length_exceeded"),
    errors.Unauthorized: (401, "invalid_api_key"),
    errors.Forbidden: (403, "forbidden"),
    errors.Busy: (503, "busy"),
    errors.QueueFull: (429, "queue_full"),
    errors.QueueTimeout: (503, "queue_timeout"),
    errors.Loading: (503, "model_loading"),
    errors.ShuttingDown: (503, "shutting_down"),
    errors.Unavailable: (503, "model_unavailable"),
    errors.RuntimeFailure: (502, "engine_failed"),
    errors.StartFailed: (503, "engine_start_failed"),
    errors.Died: (502, "engine_died"),
    errors.Stalled: (504, "engine_stalled"),
    errors.ProtocolError: (502, "engine_protocol_error"),
    errors.InvalidOutput: (502, "invalid_model_output"),
    errors.DeviceLost: (503, "device_lost"),
    errors.Cancelled: (503, "cancelled"),
    errors.InstallError: (502, "install_failed"),
    errors.ChecksumMismatch: (502, "checksum_mismatch"),
    errors.DownloadFailed: (502, "download_failed"),
}
STATUS: dict[type[ServiceError], int] = {kind: status for kind, (status, _) in ANSWERS.items()}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a family of clients is answered. `media_type`, `error_chunk` and `ping` are those of a stream."""

    error_response: Callable[[ServiceError], Response]
    media_type: str
    error_chunk: Callable[[ServiceError], bytes]
    ping: bytes = b""


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def sse(content: object, event: str = "") -> bytes:
    """Make one server-sent event."""
    name = b"event: %b\n" % event.encode() if event else b""
    return name + b"data: " + orjson.dumps(content) + b"\n\n"


def error_answer(error: ServiceError, status: int, body: Mapping[str, Any]) -> Response:
    """Answer with `body`, and with the headers that tell a client how to try again."""
    headers = {}
    if isinstance(error, errors.Busy):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, errors.EncodedBody):
        headers["Accept-Encoding"] = "identity"
    return json_response(body, status, headers)


def entry_of(error: ServiceError, table: Mapping[type[ServiceError], V]) -> V:
    """The entry of the error's class, or of the nearest class above it that has one."""
    return next(table[kind] for kind in type(error).__mro__ if kind in table)


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
