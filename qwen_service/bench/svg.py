"""Line charts as SVG text: axes with round numbers, one class per series, no script."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 24, 14, 40
MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class Series:
    """`kind` is the class that gives it its colour: a, b, ...; `thin` for one of many, `dots` marks the points."""

    label: str
    points: Sequence[Point]
    kind: str
    thin: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    label: str
    say: Callable[[float], str]
    low: float = 0.0
    high: float | None = None
    ticks: Sequence[float] = ()  # instead of round numbers


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the ticks are, and how values become places."""

    x: Axis
    y: Axis
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def across(self, value: float) -> float:
        return _place(value, self.x_ticks, LEFT, WIDTH - RIGHT)

    def upward(self, value: float) -> float:
        return _place(value, self.y_ticks, HEIGHT - BOTTOM, TOP)


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """An <svg> element; empty text when there is nothing to draw."""
    shown = [one for one in series if one.points]
    if not shown:
        return ""
    x_ticks = _ticks(x, [px for one in shown for px, _ in one.points])
    y_ticks = _ticks(y, [py for one in shown for _, py in one.points])
    frame = Frame(x, y, x_ticks, y_ticks)
    parts = "".join([_grid(frame), *(_curve(one, frame) for one in shown)])
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">{parts}</svg>'


def _place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    return start + (end - start) * (value - ticks[0]) / ((ticks[-1] - ticks[0]) or 1.0)


def _ticks(axis: Axis, values: Sequence[float]) -> list[float]:
    """Four to eight round numbers that hold all values."""
    if axis.ticks:
        return [axis.low, *axis.ticks]
    high = axis.high if axis.high is not None else max(values)
    span = max(high - axis.low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 6)
    count = math.ceil(round(span / step, 6))
    return [axis.low + step * index for index in range(count + 1)]


def _grid(frame: Frame) -> str:
    floor = HEIGHT - BOTTOM
    parts = []
    for tick in frame.y_ticks:
        at = frame.upward(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(frame.y.say(tick))}</text>')
    for tick in frame.x_ticks:
        at = frame.across(tick)
        parts.append(f'<text x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{escape(frame.x.say(tick))}</text>')
    name = f'<text class="name" y="{HEIGHT - 4}"'
    parts.append(f'{name} x="{WIDTH - RIGHT}" text-anchor="end">{escape(frame.x.label)}</text>')
    parts.append(f'{name} x="{LEFT}">{escape(frame.y.label)}</text>')
    return "".join(parts)


def _curve(series: Series, frame: Frame) -> str:
    places = [(f"{frame.across(x):.1f}", f"{frame.upward(y):.1f}") for x, y in _thinned(series.points)]
    path = "".join(f"{'L' if i else 'M'}{x},{y}" for i, (x, y) in enumerate(places))
    name = f"curve {series.kind}{' thin' if series.thin else ''}"
    dots = "".join(f'<circle class="dot {series.kind}" r="3.5" cx="{x}" cy="{y}"/>' for x, y in places)
    return f'<path class="{name}" d="{path}"><title>{escape(series.label)}</title></path>{dots if series.dots else ""}'


def _thinned(points: Sequence[Point]) -> list[Point]:
    if len(points) <= MOST_POINTS:
        return list(points)
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(index * step)] for index in range(MOST_POINTS)]
