"""The secret token that all nodes of a cluster share. With it one can run any program on every node.

Ray reads the file itself. The token never appears in a log or on a command line.
"""

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from qwen_service.cluster.ray_command import ClusterError


def token_file(environment: Mapping[str, str]) -> Path:
    """The file that Ray reads: RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token."""
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def make_token(path: Path) -> bool:
    """Make the file, readable by this user only. Returns False if it exists already. Raises ClusterError."""
    if path.is_file():
        return False
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except OSError as error:
        raise ClusterError(f"{path}: the cluster's token cannot be written: {error.strerror}.") from None
    return True


def demand_token(path: Path, head: str = "") -> None:
    """Raise ClusterError when there is no token, or other users could read it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        copy = f"install -d -m 700 {path.parent} && scp {head}:.ray/auth_token {path} && chmod 600 {path}"
        raise ClusterError(
            f"{path} is missing: every node needs the token of the head."
            + (f" Copy it: {copy}" if head else " `qwen-service cluster start --head` makes it.")
        ) from None
    except OSError as error:
        raise ClusterError(f"{path}: the cluster's token cannot be read: {error.strerror}.") from None
    if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.getuid():
        raise ClusterError(
            f"{path}: other users can read the cluster's token. Close it with: chmod 600 {path}"
            " (and if they are not to be trusted: delete it everywhere and begin with a new one)."
        )
