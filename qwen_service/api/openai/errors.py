"""Our errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}} with the right status."""

import orjson
from starlette.responses import Response

from qwen_service import errors
from qwen_service.api.reply import Dialect, entry_of, error_answer

# class -> (status, type, code). A test demands an entry for every class of the tree.
TABLE: dict[type[errors.ServiceError], tuple[int, str, str | None]] = {
    errors.ServiceError: (500, "server_error", None),
    errors.RequestError: (400, "invalid_request_error", None),
    errors.InvalidRequest: (400, "invalid_request_error", "invalid_value"),
    errors.RequestTooLarge: (413, "invalid_request_error", "request_too_large"),
    errors.EncodedBody: (415, "invalid_request_error", "unsupported_encoding"),
    errors.Unsupported: (400, "invalid_request_error", "unsupported"),
    errors.NotOffered: (501, "invalid_request_error", "not_offered"),
    errors.UnknownModel: (404, "invalid_request_error", "model_not_found"),
    errors.NotLoaded: (409, "invalid_request_error", "model_not_loaded"),
    errors.RequestTimedOut: (408, "invalid_request_error", "request_timed_out"),
    errors.PromptTooLong: (400, "invalid_request_error", "context_length_exceeded"),
    errors.Unauthorized: (401, "authentication_error", "invalid_api_key"),
    errors.Forbidden: (403, "permission_error", "forbidden"),
    errors.Busy: (503, "server_error", "busy"),
    errors.QueueFull: (429, "rate_limit_error", "queue_full"),
    errors.QueueTimeout: (503, "server_error", "queue_timeout"),
    errors.Loading: (503, "server_error", "model_loading"),
    errors.ShuttingDown: (503, "server_error", "shutting_down"),
    errors.Unavailable: (503, "server_error", "model_unavailable"),
    errors.RuntimeFailure: (502, "server_error", "engine_failed"),
    errors.StartFailed: (503, "server_error", "engine_start_failed"),
    errors.Died: (502, "server_error", "engine_died"),
    errors.Stalled: (504, "server_error", "engine_stalled"),
    errors.ProtocolError: (502, "server_error", "engine_protocol_error"),
    errors.InvalidOutput: (502, "server_error", "invalid_model_output"),
    errors.DeviceLost: (503, "server_error", "device_lost"),
    errors.Cancelled: (503, "server_error", "cancelled"),
    errors.InstallError: (502, "server_error", "install_failed"),
    errors.ChecksumMismatch: (502, "server_error", "checksum_mismatch"),
    errors.DownloadFailed: (502, "server_error", "download_failed"),
}


def error_response(error: errors.ServiceError) -> Response:
    status, _, _ = entry_of(error, TABLE)
    return error_answer(error, status, error_body(error))


def error_chunk(error: errors.ServiceError) -> bytes:
    return b"data: " + orjson.dumps(error_body(error)) + b"\n\n"


def error_body(error: errors.ServiceError) -> dict[str, dict[str, str | None]]:
    _, kind, code = entry_of(error, TABLE)
    param = error.param if isinstance(error, errors.RequestError) else None
    return {"error": {"message": error.message, "type": kind, "param": param, "code": code}}


OPENAI = Dialect(error_response, "text/event-stream; charset=utf-8", error_chunk, ping=b": ping\n\n")
