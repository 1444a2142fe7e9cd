"""The ASGI types of the middleware, and its readers of a scope."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from qwen_service.errors import ServiceError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
ErrorResponse = Callable[[Scope, ServiceError], ASGIApp]


ADMIN_SOCKET = "qwen_service.admin_socket"  # key in the scope of a request that came through our unix socket

# Fields of which a request has at most one line (RFC 9110, RFC 9112). request_checks.SingleHeaders refuses more.
SINGLE_HEADERS = frozenset(
    {
        b"host", b"authorization", b"x-api-key", b"content-length", b"transfer-encoding", b"content-type", b"origin",
        b"access-control-request-method", b"x-request-id", b"x-priority",
    }
)  # fmt: skip

# What clients call a conversation; the first that is there counts. Claude Code, Codex and opencode send one of their own.
SESSION_HEADERS = (b"x-session-id", b"session-id", b"x-claude-code-session-id")


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header that may occur once (`name` in lower case, one of SINGLE_HEADERS)."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def joined(scope: Scope, name: bytes) -> bytes:
    """Join all lines of a header that is a list (RFC 9110, 5.3); empty when there is none."""
    return b", ".join(value for key, value in scope["headers"] if key == name)
