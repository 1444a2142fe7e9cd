"""Tolerates what clients get wrong in the request target: doubled slashes, HEAD, a wrong base URL."""

import re
from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute, Match

from qwen_service.api.asgi import ASGIApp, Receive, Scope, Send

METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
PREFIXES = ("/v1", "/api")  # of OpenAI's routes, and of Ollama's


class PlainPath:
    """Treats `//v1/models` as `/v1/models`: base URLs often end in a slash.

    It comes first in the list, so that keys and admin rights are checked for the path that is routed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "//" in scope["path"]:
            scope = {**scope, "path": re.sub("//+", "/", scope["path"])}
        await self.app(scope, receive, send)


class HeadAsGet:
    """Routes HEAD to the route of GET. The server still sees HEAD and leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)
        as_get = {**scope, "method": "GET"}
        try:
            return await self.app(as_get, receive, send)
        finally:
            scope["route"] = as_get.get("route")  # for the request's record


def allowed_methods(routes: Sequence[BaseRoute], path: str) -> list[str]:
    """All methods that `path` allows, over all routes; a single route knows only its own."""
    methods = [method for method in METHODS if _is_taken(routes, method, path)]
    return sorted([*methods, "HEAD"] if "GET" in methods else methods)


def base_url_hint(routes: Sequence[BaseRoute], method: str, path: str) -> str:
    """A hint about the client's base URL when a small change of `path` would match a route; else empty."""
    for prefix in PREFIXES:
        rest = path.removeprefix(prefix)
        if rest != path and rest.startswith(PREFIXES) and _is_taken(routes, method, rest):
            return f" Take {prefix} from the end of the base URL in your client's settings: the client adds {_prefix_of(rest)} itself."
    for prefix in PREFIXES:
        if not path.startswith(PREFIXES) and _is_taken(routes, method, prefix + path):
            return (
                f" Add {prefix} to the end of the base URL in your client's settings: this service has {prefix + path}."
            )
    return ""


def _prefix_of(path: str) -> str:
    return next(prefix for prefix in PREFIXES if path.startswith(prefix))


def _is_taken(routes: Sequence[BaseRoute], method: str, path: str) -> bool:
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in routes)
