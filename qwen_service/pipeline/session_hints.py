"""Remembers where a client's session ran last, by what the client calls it. A hint only: what a KV cache holds counts more."""

import hashlib
from collections import OrderedDict

from qwen_service.chat import ChatRequest
from qwen_service.recent import put_recent

MOST_SESSIONS = 1024  # 16 bytes and a name each


class SessionHints:
    def __init__(self) -> None:
        self._places: OrderedDict[bytes, str] = OrderedDict()

    def place(self, request: ChatRequest) -> str:
        """Return the name of the place; "" when none is remembered."""
        return self._places.get(_key(request), "") if request.session else ""

    def note(self, request: ChatRequest, place: str) -> None:
        if request.session:
            put_recent(self._places, _key(request), place, MOST_SESSIONS)


def _key(request: ChatRequest) -> bytes:
    """Digest of client and session: two clients may use the same session name."""
    name = f"{len(request.client)} {request.client} {request.session}"
    return hashlib.blake2b(name.encode(errors="replace"), digest_size=16).digest()
