"""How Ollama's routes differ from those around them: any content type is JSON, and errors are {"error": "text"}."""

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response

from qwen_service.api.body_fault import first_fault
from qwen_service.api.json_body import Handler, JsonRoute
from qwen_service.api.ollama.errors import error_response
from qwen_service.errors import InvalidRequest, ServiceError


class OllamaRoute(JsonRoute):
    """Ollama never looks at the content type, and `curl -d` sends a form's."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            others = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
            scope = {**request.scope, "headers": [*others, (b"content-type", b"application/json")]}
            try:
                return await handler(Request(scope, request.receive))
            except RequestValidationError as error:
                return error_response(_explained(error))
            except ServiceError as error:
                return error_response(error)

        return handle


def _explained(error: RequestValidationError) -> InvalidRequest:
    fault = first_fault(error)
    if fault.kind == "json_invalid":
        return InvalidRequest(fault.message)
    if fault.kind == "missing":
        return InvalidRequest(f"{fault.field or 'the body'} is required", param=fault.field or None)
    return InvalidRequest(f"invalid {fault.field or 'body'}: {fault.message}", param=fault.field or None)
