"""Charts as inline SVG: no script, no font, no file beside the page. Colours come from its CSS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 28, 36
_MAX_POINTS = 2000


@dataclass(frozen=True, slots=True)
class Series:
    """Points in order of x; `dots` draws no line. color: 0 to 5, a class of the page."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int = 0
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a chart: values from `low` to `high` on `start` to `end` of the picture."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round numbers."""
        rough = (self.high - self.low) / 5
        base = 10.0 ** math.floor(math.log10(rough))
        step = next(base * m for m in (1, 2, 5, 10) if base * m >= rough)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def chart(title: str, x_name: str, y_name: str, series: Sequence[Series]) -> str:
    """A figure with a legend; both axes begin at 0."""
    shown = [one for one in series if len(one.xs)]
    if not shown:
        return ""
    x = Axis(0.0, _top(v for s in shown for v in s.xs), _LEFT, _WIDTH - _RIGHT)
    y = Axis(0.0, _top(v for s in shown for v in s.ys), _HEIGHT - _BOTTOM, _TOP)
    parts = [*_grid(x, y), *(_drawn(s, x, y) for s in shown)]
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 4, x_name, "middle"))
    parts.append(_text(4, 14, y_name, "start"))
    legend = " ".join(f'<span class="c{s.color}">&#9632; {escape(s.name)}</span>' for s in shown)
    return (
        f"<figure><figcaption>{escape(title)}<br><small>{legend}</small></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _top(values: Iterable[float]) -> float:
    return max(values, default=0.0) * 1.05 or 1.0


def _grid(x: Axis, y: Axis) -> list[str]:
    lines = []
    for value in x.ticks():
        at = x.place(value)
        lines.append(f'<line x1="{at:.1f}" y1="{y.start}" x2="{at:.1f}" y2="{y.end}"/>')
        lines.append(_text(at, y.start + 14, f"{value:g}", "middle"))
    for value in y.ticks():
        at = y.place(value)
        lines.append(f'<line x1="{x.start}" y1="{at:.1f}" x2="{x.end}" y2="{at:.1f}"/>')
        lines.append(_text(x.start - 4, at + 4, f"{value:g}", "end"))
    return lines


def _drawn(series: Series, x: Axis, y: Axis) -> str:
    every = max(1, len(series.xs) // _MAX_POINTS)
    points = [
        (x.place(px), y.place(py))
        for px, py in list(zip(series.xs, series.ys, strict=True))[::every]
    ]
    if series.dots:
        dots = "".join(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2"/>' for px, py in points)
        return f'<g class="dots f{series.color}">{dots}</g>'
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    return f'<polyline class="s{series.color}" points="{path}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
