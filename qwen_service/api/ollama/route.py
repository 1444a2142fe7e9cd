"""How Ollama's routes differ from those around them: any content type is JSON."""

from starlette.requests import Request
from starlette.responses import Response

from qwen_service.api.json_body import Handler, JsonRoute


class OllamaRoute(JsonRoute):
    """Reads the body as JSON whatever its content type is, as Ollama does: `curl -d` sends a form's content type."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            others = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
            scope = {**request.scope, "headers": [*others, (b"content-type", b"application/json")]}
            return await handler(Request(scope, request.receive))

        return handle
