"""The ASGI types of this service's middleware, and the little that all of it needs to read from a scope."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from qwen_service.errors import ServiceError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
ErrorResponse = Callable[[Scope, ServiceError], ASGIApp]


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of this name (lower case)."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None
