"""Checks of a request's head, before its body is read. A check returns an error, or None."""

import hashlib
import hmac
import re
from collections.abc import Iterable

from qwen_service.api.access import ClientAddress, as_address
from qwen_service.api.asgi import ADMIN_SOCKET, SINGLE_HEADERS, Scope, header, joined
from qwen_service.api.keys import ApiKeys
from qwen_service.errors import EncodedBody, Forbidden, InvalidRequest, RequestTooLarge, Unauthorized

ADMIN_PATHS = frozenset({"/v1/models/load", "/api/create", "/api/copy", "/api/delete"})
ALWAYS_OPEN = frozenset({"/health", "/health/live", "/health/ready"})
HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")


class AllowedHosts:
    """Refuses foreign Host names, against DNS rebinding: a web page whose name points to our address must not reach us.

    An IP address is never foreign, because it cannot be rebound. The port is ignored; "*" allows every name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = {"localhost", *(name.lower() for name in names)}
        self.every_name = "*" in self.names

    def __call__(self, scope: Scope) -> Forbidden | None:
        for key, value in scope["headers"]:
            if key == b"host" and not self.allows(value.decode("latin-1")):
                shown = value[:80].decode("ascii", "replace")
                name = shown.rpartition(":")[0] or shown
                return Forbidden(
                    f"{shown!r} is not a host name of this service. If the name is right, set `allowed_hosts: {name}` in"
                    " config.yaml; the machine's IP address works without."
                )
        return None

    def allows(self, host: str) -> bool:
        match = HOST_AND_PORT.fullmatch(host)
        if match is None:
            return False
        name = match[1].removesuffix(".").lower()
        return self.every_name or name in self.names or as_address(name.strip("[]")) is not None


class SingleHeaders:
    """Refuses repeated headers that HTTP allows once: a proxy might read one line and we the other."""

    def __call__(self, scope: Scope) -> InvalidRequest | None:
        seen: set[bytes] = set()
        for name, _ in scope["headers"]:
            if name in seen and name in SINGLE_HEADERS:
                return InvalidRequest(f"The request has more than one {name.decode('ascii').title()} header; send one.")
            seen.add(name)
        return None


class HeadLimit:
    """Bounds number and bytes of the headers and the target; the HTTP parser has no bound of its own."""

    def __init__(self, max_headers: int, max_bytes: int) -> None:
        self.max_headers, self.max_bytes = max_headers, max_bytes

    def __call__(self, scope: Scope) -> RequestTooLarge | None:
        headers = scope["headers"]
        size = len(scope["raw_path"]) + len(scope["query_string"])
        for key, value in headers:
            size += len(key) + len(value)
        if len(headers) <= self.max_headers and size <= self.max_bytes:
            return None
        return RequestTooLarge(
            f"The request's head has {len(headers)} headers and {size} bytes; at most {self.max_headers} headers and"
            f" {self.max_bytes} bytes are allowed (max_header_bytes)."
        )


class KeyRequired:
    """Requires `Authorization: Bearer KEY` or `x-api-key: KEY`, and notes the name of the key, never the key itself.

    Administration needs a key, too, unless there is an admin token or the request came through the admin socket, which only
    the service's own user and root can open.
    """

    def __init__(
        self, keys: ApiKeys, open_paths: Iterable[str] = ALWAYS_OPEN, *, admin_has_token: bool = False
    ) -> None:
        self.keys, self.open_paths, self.admin_has_token = keys, frozenset(open_paths), admin_has_token

    def __call__(self, scope: Scope) -> Unauthorized | None:
        if scope["path"] in self.open_paths or self._is_checked_elsewhere(scope):
            return None
        name = self.keys.name_of(bearer(scope) or header(scope, b"x-api-key") or b"")
        if name is None:
            return Unauthorized(
                "This service needs an API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`."
                " `qwen-service key NAME` on its machine makes one."
            )
        scope["state"]["record"].client = name
        return None

    def _is_checked_elsewhere(self, scope: Scope) -> bool:
        return is_admin_path(scope["path"]) and (self.admin_has_token or bool(scope.get(ADMIN_SOCKET)))


class AdminOnly:
    """Opens the admin routes to users of this machine only, with the token if there is one, and never to a web page."""

    def __init__(self, client: ClientAddress, token: str | None) -> None:
        self.client = client
        self.token = hashlib.sha256(token.encode()).digest() if token else None

    def __call__(self, scope: Scope) -> Forbidden | Unauthorized | None:
        if not is_admin_path(scope["path"]):
            return None
        if not self.client.is_local(scope):
            return Forbidden(
                "Only this machine may administer the service: send the request to 127.0.0.1 or to the admin socket."
            )
        if header(scope, b"origin") is not None:
            return Forbidden("Web pages may not administer the service.")
        given = hashlib.sha256(bearer(scope)).digest()
        if self.token is not None and not hmac.compare_digest(given, self.token):
            return Unauthorized(
                "Administration needs the token of admin_token_file: send `Authorization: Bearer TOKEN`."
            )
        return None


class PlainBody:
    """Refuses compressed bodies: a small one could unpack to any size, and no known client needs compression."""

    def __call__(self, scope: Scope) -> EncodedBody | None:
        for name, plain in ((b"content-encoding", "identity"), (b"transfer-encoding", "chunked")):
            codings = [coding.strip().lower() for coding in joined(scope, name).decode("latin-1").split(",")]
            if foreign := [coding for coding in codings if coding not in ("", plain)]:
                field, shown = name.decode().title(), ", ".join(foreign)[:80]
                return EncodedBody(f"{field} {shown!r} is not understood: send the body as it is, not compressed.")
        return None


def is_admin_path(path: str) -> bool:
    return path.startswith("/admin/") or path in ADMIN_PATHS


def bearer(scope: Scope) -> bytes:
    kind, _, key = (header(scope, b"authorization") or b"").partition(b" ")
    return key.strip() if kind.lower() == b"bearer" else b""
