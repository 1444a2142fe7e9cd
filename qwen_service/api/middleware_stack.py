"""The middleware that every request passes, in order. `public_paths` need no API key."""

import socket
from collections.abc import Callable

from starlette.middleware import Middleware

from qwen_service.api.access import ClientAddress
from qwen_service.api.asgi import ErrorResponse, Scope
from qwen_service.api.keys import ApiKeys, read_token
from qwen_service.api.middleware import BodyLimit, Checks, CrossOrigin, RequestContext, RequestLimit
from qwen_service.api.request_checks import (
    ALWAYS_OPEN,
    AdminOnly,
    AllowedHosts,
    HeadLimit,
    KeyRequired,
    PlainBody,
    SingleHeaders,
)
from qwen_service.api.targets import HeadAsGet, PlainPath
from qwen_service.errors import ServiceError
from qwen_service.request_record import RequestRecord
from qwen_service.settings import Settings

MAX_HEADERS = 100
AUDIO_FILES = ("/v1/audio/transcriptions", "/v1/audio/translations")
FORM_BYTES = 65_536  # for the fields of a form beside its file


def middleware_stack(
    settings: Settings,
    finished: Callable[[RequestRecord], None],
    error_response: ErrorResponse,
    *,
    api_keys: ApiKeys | None,
    public_paths: frozenset[str],
) -> list[Middleware]:
    answer = {"error_response": error_response}
    client = ClientAddress(settings.trusted_proxies)
    return [
        Middleware(PlainPath),
        Middleware(RequestContext, finished=finished, client=client, **answer),
        Middleware(RequestLimit, most=settings.max_connections, always_open=ALWAYS_OPEN, **answer),
        Middleware(Checks, checks=[SingleHeaders(), HeadLimit(MAX_HEADERS, settings.max_header_bytes)], **answer),
        Middleware(CrossOrigin, origins=settings.cors_origins, **answer),
        Middleware(Checks, checks=_checks(settings, client, api_keys, public_paths), **answer),
        Middleware(
            BodyLimit,
            max_bytes=settings.max_body_bytes,
            timeout=settings.body_timeout,
            larger=dict.fromkeys(AUDIO_FILES, settings.max_audio_bytes + FORM_BYTES),
            **answer,
        ),
        Middleware(HeadAsGet),
    ]


def _checks(
    settings: Settings, client: ClientAddress, api_keys: ApiKeys | None, public_paths: frozenset[str]
) -> list[Callable[[Scope], ServiceError | None]]:
    own_name = socket.gethostname()
    checks: list[Callable[[Scope], ServiceError | None]] = [
        AllowedHosts({own_name, f"{own_name}.local", *settings.allowed_hosts}),
    ]
    admin_token = read_token(settings.admin_token_file) if settings.admin_token_file else None
    if api_keys is not None:
        checks.append(KeyRequired(api_keys, ALWAYS_OPEN | public_paths, admin_has_token=admin_token is not None))
    return [*checks, AdminOnly(client, admin_token), PlainBody()]
