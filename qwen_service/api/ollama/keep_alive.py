"""Parses keep_alive, the time that a model stays loaded: seconds, or a duration in Go's notation ("1h30m")."""

import re

from qwen_service.errors import InvalidRequest

FOR_EVER = float("inf")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_WHOLE = re.compile(rf"([+-]?)((?:{_PART.pattern})+|0)")


def seconds_of(keep_alive: float | str) -> float:
    """Convert keep_alive to seconds. Any negative value means for ever."""
    if isinstance(keep_alive, str):
        match = _WHOLE.fullmatch(keep_alive.strip())
        if match is None:
            message = f'keep_alive {keep_alive!r} is not a duration: a number of seconds, or a text such as "5m"'
            raise InvalidRequest(message, param="keep_alive")
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(match[2]))
        keep_alive = -seconds if match[1] == "-" else seconds
    return FOR_EVER if keep_alive < 0 else float(keep_alive)
