"""Replaces this process by another program."""

import os
import signal
from collections.abc import Mapping
from typing import NoReturn

from qwen_service.errors import ServiceError


def become(command: list[str], environment: Mapping[str, str]) -> NoReturn:
    """Execute the command with this environment. Raises ServiceError when that fails."""
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two, and the program would inherit that
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execve(command[0], command, environment)  # noqa: S606  # no shell is what we want
    except OSError as error:
        raise ServiceError(f"{command[0]} cannot be executed: {error.strerror}.") from None
