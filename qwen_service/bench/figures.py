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


def tick(value: float) -> str:
    """A round duration under an axis."""
    if value == 0:
        return "0"
    return f"{value * 1000:.6g} ms" if value < 1 else f"{value:.6g} s"


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
    digits = 2 if factor == 1 or p50 < 0.01 else 1 if p50 < 0.1 else 0
    texts = [f"{value * factor:.{digits}f}" for value in (p50, *tail)]
    return f"{texts[0]} {name}", "/".join(texts[1:])
