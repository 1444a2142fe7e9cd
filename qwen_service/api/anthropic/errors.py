"""Our errors in Anthropic's shape: {"type": "error", "error": {"type", "message"}, "request_id"} with the status."""

from typing import Any

from starlette.responses import Response

from qwen_service import errors
from qwen_service.api.reply import STATUS, Dialect, entry_of, error_answer, sse
from qwen_service.request_record import recording

OVERLOADED = 529  # clients retry 429 and 529 after Retry-After
TABLE = STATUS | dict.fromkeys((errors.Busy, errors.QueueTimeout, errors.Loading, errors.ShuttingDown), OVERLOADED)
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    OVERLOADED: "overloaded_error",
}


def type_of(status: int) -> str:
    return TYPES.get(status) or ("invalid_request_error" if status < 500 or status == 501 else "api_error")


def error_response(error: errors.ServiceError) -> Response:
    return error_answer(error, entry_of(error, TABLE), error_body(error))


def error_chunk(error: errors.ServiceError) -> bytes:
    return sse(error_body(error), "error")


def error_body(error: errors.ServiceError) -> dict[str, Any]:
    described = {"type": type_of(entry_of(error, TABLE)), "message": _message(error)}
    return {"type": "error", "error": described, "request_id": recording().id}


def _message(error: errors.ServiceError) -> str:
    """The message. Claude Code reads both numbers out of this sentence and shows them."""
    if isinstance(error, errors.PromptTooLong) and error.tokens and error.maximum:
        return f"prompt is too long: {error.tokens} tokens > {error.maximum} maximum"
    return error.message


ANTHROPIC = Dialect(error_response, "text/event-stream; charset=utf-8", error_chunk, sse({"type": "ping"}, "ping"))
