"""Remembers where a client's session ran last, by what the client calls it. A hint only: what a KV cache holds counts more."""

import hashlib
from collections import OrderedDict

from qwen_service.chat import ChatRequest

MOST_SESSIONS = 1024  # 16 bytes and a name each


class SessionHints:
    def __init__(self) -> None:
        self._places: OrderedDict[bytes, str] = OrderedDict()

    def place(self, request: ChatRequest) -> str:
        """The name of the place, "" where there is none."""
        return self._places.get(_key(request), "") if request.session else ""

    def note(self, request: ChatRequest, place: str) -> None:
        if not request.session:
            return
        key = _key(request)
        self._places[key] = place
        self._places.move_to_end(key)
        if len(self._places) > MOST_SESSIONS:
            self._places.popitem(last=False)


def _key(request: ChatRequest) -> bytes:
    """Of one client only: the sessions of two may have the same name."""
    name = f"{len(request.client)} {request.client} {request.session}"
    return hashlib.blake2b(name.encode(errors="replace"), digest_size=16).digest()
