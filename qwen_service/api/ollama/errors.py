"""Our errors in Ollama's shape: {"error": "text"} with the right status."""

import orjson
from starlette.responses import Response

from qwen_service import errors
from qwen_service.api.reply import STATUS, Dialect, entry_of, error_answer

# Home Assistant takes 401 and 403 as a wrong key, 429 and 5xx as "try later", and any other 4xx as a faulty configuration.
TABLE = STATUS | {errors.QueueFull: 503, errors.RuntimeFailure: 500, errors.Died: 500, errors.ProtocolError: 500}


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
