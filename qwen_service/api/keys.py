"""API keys by name, kept as SHA-256 only. One `NAME SHA256-HEX` a line, `#` begins a comment.

A key is made of 32 random bytes (`new_key`), which nobody can guess, so a plain hash is enough.
"""

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from qwen_service.errors import ServiceError

NAME = r"[A-Za-z0-9._@-]{1,64}"
LINE = re.compile(rf"({NAME})\s+([0-9a-f]{{64}})")


class KeyFileError(ServiceError):
    """The key file cannot be used. The service must then not start at all: without keys it would be open."""


class ApiKeys:
    def __init__(self, names_by_hash: dict[str, str]) -> None:
        self._entries = [(digest.encode(), name) for digest, name in names_by_hash.items()]

    @classmethod
    def from_file(cls, path: Path) -> "ApiKeys":
        try:
            lines = path.expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"{path}: the API keys cannot be read: {error}") from None
        names_by_hash = dict(_parse(path, number, line) for number, line in enumerate(lines, 1) if _content(line))
        if not names_by_hash:
            raise KeyFileError(f"{path} has no API key. `qwen-service key NAME --file {path}` adds one.")
        return cls(names_by_hash)

    def replace(self, other: "ApiKeys") -> None:
        """Use the keys of `other` from now on."""
        self._entries = other._entries

    def name_of(self, key: bytes) -> str | None:
        """The name of a key; None: no such key. Compares all entries, each in constant time, so the duration reveals nothing."""
        digest = hashlib.sha256(key).hexdigest().encode()
        found = None
        for known, name in self._entries:
            if hmac.compare_digest(digest, known):
                found = name
        return found


def new_key(name: str) -> tuple[str, str]:
    """Make a key, which is shown once, and its line for the key file. Raises KeyFileError."""
    if not re.fullmatch(NAME, name):
        raise KeyFileError(f"{name!r} cannot be the name of a key: expected at most 64 letters, digits and . _ @ -")
    key = "qs-" + secrets.token_urlsafe(32)
    return key, f"{name} {hashlib.sha256(key.encode()).hexdigest()}"


def read_token(path: Path) -> str:
    """Read the first line of a token file."""
    try:
        token = path.expanduser().read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: the admin token cannot be read: {error}") from None
    if not token:
        raise KeyFileError(f"{path}: the first line, which is the admin token, is empty.")
    return token


def _content(line: str) -> str:
    return line.partition("#")[0].strip()


def _parse(path: Path, number: int, line: str) -> tuple[str, str]:
    match = LINE.fullmatch(_content(line))
    if match is None:
        raise KeyFileError(f"{path}, line {number}: expected a name and a SHA-256 in hex (64 digits).")
    return match[2], match[1]
