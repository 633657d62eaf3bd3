"""What charts are made of: elements of SVG, scales, ticks, axes and legends. charts.py puts them together.

Colours come from the page's CSS (classes s0 to s7, axis, grid, heat): dark mode and print need no second drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 720
SERIES = 8  # colours
LABEL = 26  # letters of a name beside a chart; the whole name is its tooltip


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic scale from values `low` to `high` to pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, log: bool = False, pad: float = 0.04) -> Scale:
        """The scale of `values`, with a margin; of no value from 0 to 1."""
        known = [v for v in values if v is not None and math.isfinite(v) and (v > 0 or not log)]
        low, high = (min(known), max(known)) if known else (1.0 if log else 0.0, 10.0 if log else 1.0)
        if log:
            low, high = (low / 1.15, high * 1.15) if high / low < 1.5 else (low * (low / high) ** pad, high)
            return cls(low, high * (high / low) ** pad, start, end, True)
        room = (high - low) * pad or abs(high) * 0.1 or 0.5
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        """The place of a value in pixels, rounded to a tenth."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(max(value, self.low * 1e-6)) if self.log else value
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the scale."""
        return _log_ticks(self.low, self.high, most) if self.log else _ticks(self.low, self.high, most)


def _ticks(low: float, high: float, most: int) -> list[float]:
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(k for k in (1, 2, 2.5, 5, 10) if span / (step * k) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    for leads in ((1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [lead * 10.0**d for d in decades for lead in leads if low <= lead * 10.0**d <= high]
        if len(ticks) <= most:
            break
    while len(ticks) > most:
        ticks = ticks[::2]
    return ticks if len(ticks) > 1 else _ticks(low, high, most)


def plain(value: float) -> str:
    """A tick's number: without an exponent where that is short.

    >>> plain(0.25), plain(3.0), plain(0.00635), plain(0.0001), plain(12000.0)
    ('0.25', '3', '0.00635', '1e-4', '12,000')
    """
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.6g}" if abs(value) < 1000 else f"{value:,.0f}"


def shortened(name: str, most: int = LABEL) -> str:
    """A name as it stands beside a chart."""
    return name if len(name) <= most else name[: most - 1] + "…"


def tag(name: str, content: object = "", **attributes: object) -> Markup:
    """An element: `class_` is its class, `_` in a name stands for a hyphen; None leaves an attribute out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{escape(content)}</{name}>" if content != "" else f"<{name}{given}/>")


def joined(parts: Iterable[object]) -> Markup:
    """Elements one after the other."""
    return Markup("").join(escape(part) for part in parts)


def svg(title: str, description: str, width: float, height: float, body: Iterable[object], kind: str = "") -> Markup:
    """A drawing with its name and description for those who do not see it."""
    content = joined([tag("title", title), tag("desc", description), *body])
    box = f"0 0 {width:g} {height:g}"
    return tag(
        "svg",
        content,
        class_=f"chart {kind}".strip(),
        role="img",
        viewBox=box,
        width=f"{width:g}",
        height=f"{height:g}",
    )


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "", most: int = LABEL) -> Markup:
    """Words in a drawing, shortened, with the whole as a tooltip."""
    shown = shortened(content, most)
    inner = joined([tag("title", content), shown]) if shown != content else shown
    return tag("text", inner, x=f"{x:g}", y=f"{y:g}", text_anchor=anchor, class_=kind or None)


def legend(names: Sequence[tuple[str, int]], x: float, y: float, across: float = WIDTH) -> tuple[list[Markup], float]:
    """The names of series in lines from (x, y) on, and the height that they take."""
    parts, at, line = [], x, y
    for name, series in names:
        wide = 32 + 7.2 * len(shortened(name, 34))
        if at > x and at + wide > across:
            at, line = x, line + 18
        parts.append(
            tag("rect", x=f"{at:g}", y=f"{line - 9:g}", width=10, height=10, rx=2, class_=f"s{series % SERIES}")
        )
        parts.append(text(at + 15, line, name, most=34))
        at += wide
    return parts, line - y + 20


def x_axis(scale: Scale, y: float, top: float, title: str) -> list[Markup]:
    """Ticks below y with grid lines up to `top`."""
    parts = []
    for tick in scale.ticks():
        parts.append(tag("line", x1=scale(tick), x2=scale(tick), y1=top, y2=y, class_="grid"))
        parts.append(text(scale(tick), y + 16, plain(tick), "middle", "tick"))
    parts.append(tag("line", x1=scale.start, x2=scale.end, y1=y, y2=y, class_="axis"))
    parts.append(text((scale.start + scale.end) / 2, y + 34, title, "middle", "name", 80))
    return parts


def y_axis(scale: Scale, left: float, right: float, title: str) -> list[Markup]:
    """Ticks left of `left` with grid lines up to `right`; the title stands above."""
    parts = []
    for tick in scale.ticks():
        parts.append(tag("line", x1=left, x2=right, y1=scale(tick), y2=scale(tick), class_="grid"))
        parts.append(text(left - 6, scale(tick) + 4, plain(tick), "end", "tick"))
    parts.append(text(0, 12, title, "start", "name", 80))
    return parts
