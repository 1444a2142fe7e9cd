"""Our errors in Ollama's shape: {"error": "text"} with the right status."""

import orjson
from starlette.responses import Response

from qwen_service import errors
from qwen_service.api.reply import Dialect, entry_of, error_answer

# class -> status. A test demands an entry for every class of the tree. Home Assistant takes 401 and 403 as a wrong
# key, 429 and 5xx as "try later", and any other 4xx as a faulty configuration.
TABLE: dict[type[errors.ServiceError], int] = {
    errors.ServiceError: 500,
    errors.RequestError: 400,
    errors.InvalidRequest: 400,
    errors.RequestTooLarge: 413,
    errors.EncodedBody: 415,
    errors.RequestTimedOut: 408,
    errors.Unsupported: 400,
    errors.NotOffered: 501,
    errors.UnknownModel: 404,
    errors.NotLoaded: 409,
    errors.PromptTooLong: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.Busy: 503,
    errors.QueueFull: 503,
    errors.QueueTimeout: 503,
    errors.Loading: 503,
    errors.ShuttingDown: 503,
    errors.Unavailable: 503,
    errors.RuntimeFailure: 500,
    errors.StartFailed: 503,
    errors.Died: 500,
    errors.Stalled: 504,
    errors.ProtocolError: 500,
    errors.InvalidOutput: 502,
    errors.DeviceLost: 503,
    errors.Cancelled: 503,
    errors.InstallError: 502,
    errors.ChecksumMismatch: 502,
    errors.DownloadFailed: 502,
}


def error_response(error: errors.ServiceError) -> Response:
    return error_answer(error, entry_of(error, TABLE), error_body(error))


def error_line(error: errors.ServiceError) -> bytes:
    return orjson.dumps(error_body(error)) + b"\n"


def error_body(error: errors.ServiceError) -> dict[str, str]:
    """An unknown model in the words that clients look for."""
    if isinstance(error, errors.UnknownModel):
        return {"error": f"model '{error.name}' not found. {error.why}"}
    return {"error": error.message}


OLLAMA = Dialect(error_response, "application/x-ndjson", error_line)
