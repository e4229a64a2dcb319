"""Charts of lines as SVG, made by hand: small, sharp at any size, in the colours of the page."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 300, 190, 46, 24, 20


@dataclass(frozen=True)
class Line:
    """Points (x, y); `look` is a class of the page's style: thin, dashed, dots, diagonal."""

    label: str
    colour: str
    look: str
    points: list[tuple[float, float]]


def chart(
    title: str,
    lines: Sequence[Line],
    low: float | None = None,
    high: float | None = None,
    below: Sequence[tuple[float, str]] = (),
) -> str:
    """One chart, nothing without lines.

    low, high : ends of the axis of the values, where they do not follow from the lines
    below : places across that lie in it, and what is written there; none: round ones
    """
    if not lines:
        return ""
    places = [*(place for line in lines for place, _ in line.points), *(place for place, _ in below)]
    values = [value for line in lines for _, value in line.points]
    ticks = nice(min(values) if low is None else low, max(values) if high is None else high, 5)
    first, last = min(places), max(places)

    def x(place: float) -> float:
        return LEFT + (place - first) / ((last - first) or 1) * (WIDTH - LEFT - 8)

    def y(value: float) -> float:
        return TOP + (ticks[-1] - value) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)

    shown = "".join(_line(line, x, y) for line in lines)
    axes = _across(ticks, y) + _under(below or _round_places(first, last), x)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
        f'<text class="name" x="{LEFT}" y="12">{escape(title)}</text>{axes}{shown}</svg>'
    )


Place = Callable[[float], float]


def _across(ticks: list[float], y: Place) -> str:
    """Lines at the ticks, and their values."""
    step = ticks[1] - ticks[0]
    return "".join(
        f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - 8}"></path>'
        f'<text x="{LEFT - 5}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{_readable(tick, step)}</text>'
        for tick in ticks
    )


def _under(places: Sequence[tuple[float, str]], x: Place) -> str:
    return "".join(
        f'<text x="{x(place):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(said)}</text>'
        for place, said in places
    )


def _round_places(first: float, last: float) -> list[tuple[float, str]]:
    """Of whole numbers whole ones."""
    whole = float(first).is_integer() and last - first > 1
    found = [place for place in nice(first, last, 4) if first <= place <= last and (not whole or place == int(place))]
    return [(place, f"{place:g}") for place in found or [first]]


def nice(low: float, high: float, about: int) -> list[float]:
    """Round values that enclose a range: multiples of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(start, max(end, start + 1) + 1)]


def _readable(tick: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{tick + 0.0:.{decimals}f}" if decimals <= 3 else f"{tick:g}" if tick else "0"


def _line(line: Line, x: Place, y: Place) -> str:
    title = f"<title>{escape(line.label)}</title>"
    if line.look == "dots" or len(line.points) == 1:
        dots = (f'<circle cx="{x(place):.1f}" cy="{y(value):.1f}" r="2.5"></circle>' for place, value in line.points)
        return f'<g fill="{line.colour}">{title}{"".join(dots)}</g>'
    points = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in line.points)
    return f'<polyline class="{line.look}" stroke="{line.colour}" points="{points}">{title}</polyline>'
