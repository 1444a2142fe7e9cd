"""Our errors in Anthropic's shape: {"type": "error", "error": {"type", "message"}, "request_id"} with the status."""

from typing import Any

import orjson
from starlette.responses import Response

from qwen_service import errors
from qwen_service.api.reply import Dialect, entry_of, error_answer
from qwen_service.request_record import recording

PING = b'event: ping\ndata: {"type":"ping"}\n\n'

# class -> (status, type). A test demands an entry for every class of the tree.
# Clients retry 429 and 529 after Retry-After.
TABLE: dict[type[errors.ServiceError], tuple[int, str]] = {
    errors.ServiceError: (500, "api_error"),
    errors.RequestError: (400, "invalid_request_error"),
    errors.InvalidRequest: (400, "invalid_request_error"),
    errors.RequestTooLarge: (413, "request_too_large"),
    errors.EncodedBody: (415, "invalid_request_error"),
    errors.Unsupported: (400, "invalid_request_error"),
    errors.NotOffered: (501, "invalid_request_error"),
    errors.UnknownModel: (404, "not_found_error"),
    errors.NotLoaded: (409, "invalid_request_error"),
    errors.RequestTimedOut: (408, "invalid_request_error"),
    errors.PromptTooLong: (400, "invalid_request_error"),
    errors.Unauthorized: (401, "authentication_error"),
    errors.Forbidden: (403, "permission_error"),
    errors.Busy: (529, "overloaded_error"),
    errors.QueueFull: (429, "rate_limit_error"),
    errors.QueueTimeout: (529, "overloaded_error"),
    errors.Loading: (529, "overloaded_error"),
    errors.ShuttingDown: (529, "overloaded_error"),
    errors.Unavailable: (503, "api_error"),
    errors.RuntimeFailure: (502, "api_error"),
    errors.StartFailed: (503, "api_error"),
    errors.Died: (502, "api_error"),
    errors.Stalled: (504, "api_error"),
    errors.ProtocolError: (502, "api_error"),
    errors.InvalidOutput: (502, "api_error"),
    errors.DeviceLost: (503, "api_error"),
    errors.Cancelled: (503, "api_error"),
    errors.InstallError: (502, "api_error"),
    errors.ChecksumMismatch: (502, "api_error"),
    errors.DownloadFailed: (502, "api_error"),
}


def error_response(error: errors.ServiceError) -> Response:
    status, _ = entry_of(error, TABLE)
    return error_answer(error, status, error_body(error))


def error_chunk(error: errors.ServiceError) -> bytes:
    return b"event: error\ndata: " + orjson.dumps(error_body(error)) + b"\n\n"


def error_body(error: errors.ServiceError) -> dict[str, Any]:
    _, kind = entry_of(error, TABLE)
    return {"type": "error", "error": {"type": kind, "message": _message(error)}, "request_id": recording().id}


def _message(error: errors.ServiceError) -> str:
    """The message. Claude Code reads both numbers out of this sentence and shows them."""
    if isinstance(error, errors.PromptTooLong) and error.tokens and error.maximum:
        return f"prompt is too long: {error.tokens} tokens > {error.maximum} maximum"
    return error.message


ANTHROPIC = Dialect(error_response, "text/event-stream; charset=utf-8", error_chunk, PING)
