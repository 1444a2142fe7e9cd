"""Our errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}} with the right status."""

from starlette.responses import Response

from qwen_service.api.reply import ANSWERS, STATUS, Dialect, entry_of, error_answer, sse
from qwen_service.errors import RequestError, ServiceError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def type_of(status: int) -> str:
    return TYPES.get(status) or ("invalid_request_error" if status < 500 or status == 501 else "server_error")


def error_response(error: ServiceError) -> Response:
    return error_answer(error, entry_of(error, STATUS), error_body(error))


def error_chunk(error: ServiceError) -> bytes:
    return sse(error_body(error))


def error_body(error: ServiceError) -> dict[str, dict[str, str | None]]:
    status, code = entry_of(error, ANSWERS)
    param = error.param if isinstance(error, RequestError) else None
    return {"error": {"message": error.message, "type": type_of(status), "param": param, "code": code}}


OPENAI = Dialect(error_response, "text/event-stream; charset=utf-8", error_chunk, ping=b": ping\n\n")
