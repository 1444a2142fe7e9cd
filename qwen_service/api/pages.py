"""The chat page and the reference of the HTTP API: static files, under a Content-Security-Policy that lets nothing else load or run.

The chat page shows model output, which may be hostile, so the browser must enforce: no inline script or style, no
foreign origin, no string turned into HTML (Trusted Types). The files are public; the API that they call is not.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

FOLDER = Path(__file__).parents[1] / "web"
PAGE = "index.html"
REFERENCE = "docs.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cache-Control": "no-cache",  # the browser asks each time: an updated service must not be used by an old page
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Asset:
    content: bytes
    media_type: str
    etag: str


class ChatPage:
    """The files of the page, read once. No path of a request is ever opened: a name that is not among the files is a 404."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.assets = {path.name: _asset(path) for path in folder.iterdir() if path.suffix in MEDIA_TYPES}

    @property
    def public_paths(self) -> frozenset[str]:
        """The paths that need no API key: the page itself asks for the key."""
        return frozenset({"/", "/chat", "/docs", *(f"/web/{name}" for name in self.assets)})

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/chat", self._chat, name="chat page"),
            Route("/docs", self._reference, name="reference of the HTTP API"),
            Route("/web/{name}", self._file, name="files of both"),
        ]

    async def root(self, request: Request) -> Response:
        """The page for a browser; programs expect to read that Ollama is running."""
        if accepts_html(request.headers.get("accept", "")):
            return self._answer(request, PAGE, vary="Accept")
        return PlainTextResponse("Ollama is running", headers={"Vary": "Accept"})

    async def _chat(self, request: Request) -> Response:
        return self._answer(request, PAGE)

    async def _reference(self, request: Request) -> Response:
        return self._answer(request, REFERENCE)

    async def _file(self, request: Request) -> Response:
        return self._answer(request, request.path_params["name"])

    def _answer(self, request: Request, name: str, *, vary: str | None = None) -> Response:
        asset = self.assets.get(name)
        if asset is None:
            return Response("Not found\n", status_code=404, media_type="text/plain")
        headers = {**HEADERS, "ETag": asset.etag} | ({"Vary": vary} if vary else {})
        if request.headers.get("if-none-match") == asset.etag:
            return Response(status_code=304, headers=headers)
        return Response(asset.content, headers=headers, media_type=asset.media_type)


def accepts_html(accept: str) -> bool:
    """Whether text/html is named and not refused. `*/*` does not count: programs send it."""
    ranges = (part.strip().lower().split(";") for part in accept.split(","))
    return any(
        name.strip() == "text/html" and "q=0" not in (p.strip() for p in parameters) for name, *parameters in ranges
    )


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    return Asset(content, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:16]}"')
