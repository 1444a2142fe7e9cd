"""Numbers as people read them."""

import math
from collections.abc import Sequence

NONE = "–"


def seconds(value: float) -> str:
    if math.isnan(value):
        return NONE
    if value < 0.01:
        return f"{value * 1000:.2f} ms"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def number(value: float) -> str:
    if math.isnan(value):
        return NONE
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def count(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.0f}"


def megabytes(value: float) -> str:
    return f"{value / 1e6:.0f} MB"


def in_unit(value: float, unit: str) -> str:
    return seconds(value) if unit == "s" else number(value) if unit == "/s" else count(value)


def spread_lines(p50: float, tail: Sequence[float], unit: str) -> tuple[str, str]:
    """The median with its unit, and the tail in the same unit: 493 ms, 589/594."""
    if unit != "s":
        return in_unit(p50, unit), "/".join(in_unit(value, unit) for value in tail)
    factor, name = (1, "s") if max(p50, *tail) >= 1 else (1000, "ms")
    digits = _digits(max(tail) * factor)
    ends = "/".join(f"{value * factor:.{digits}f}" for value in tail)
    return f"{p50 * factor:.{_digits(p50 * factor)}f} {name}", ends


def _digits(value: float) -> int:
    return 2 if value < 10 else 1 if value < 100 else 0
