"""Small charts of probabilities: reliability diagrams and decision curves, one a finding, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from cxrlt_ray.page.charts import Mark
from cxrlt_ray.page.svg import Scale, plain, svg, tag, text

EDGE, LEFT, TOP = 104.0, 40.0, 6.0  # pixels of the square
Point = tuple[float, float]


def reliability(title: str, description: str, series: Sequence[Sequence[tuple[float, Mark]]]) -> Markup:
    """Rates of positives with intervals over mean scores, both from 0 to the largest; dashed: where they are equal.

    series: (mean score, rate), the later ones in front; a Mark's series is its colour.
    """
    known = [v for line in series for at, rate in line for v in (at, rate.value, rate.high) if v is not None]
    most = min(max(known, default=1.0) * 1.05, 1.0) or 1.0
    x, y, parts = _square(0.0, most, 0.0, most)
    parts.append(tag("line", x1=x(0), y1=y(0), x2=x(most), y2=y(most), class_="axis dashed"))
    for line in series:
        for at, rate in line:
            parts += _rate(at, rate, x, y)
    return svg(title, description, LEFT + EDGE + 10, TOP + EDGE + 20, parts, "small")


def _rate(at: float, rate: Mark, x: Scale, y: Scale) -> list[Markup]:
    tone, parts, bounds = f"s{rate.series}", [], ""
    if rate.low is not None and rate.high is not None:
        bounds = f" [{plain(round(rate.low, 4))}, {plain(round(rate.high, 4))}]"
        parts.append(tag("line", x1=x(at), x2=x(at), y1=y(rate.low), y2=y(rate.high), class_=f"whisker {tone}"))
    words = f"{rate.name}: of a mean score of {plain(round(at, 4))}, {plain(round(rate.value, 4))}{bounds}"
    return [*parts, tag("circle", tag("title", words), cx=x(at), cy=y(rate.value), r=2.6, class_=tone)]


def decision(title: str, description: str, scores: Sequence[tuple[float, Mark]], on_all: Sequence[Point]) -> Markup:
    """Net benefit over the probability from which on one acts (logarithmic), as a band and a line; dashed: on all.

    The axis begins at minus a quarter of the largest benefit: acting on all falls out of the picture there.
    """
    most = max((v for _, benefit in scores for v in (benefit.value, benefit.high) if v is not None), default=0.0)
    most = max(most, *(value for _, value in on_all), 0.0) or 1.0
    first, last = scores[0][0], scores[-1][0]
    x, y, parts = _square(first, max(last, first * 2), -most / 4, most * 1.05, log=True)
    parts.append(tag("line", x1=x(first), x2=x(last), y1=y(0), y2=y(0), class_="axis"))
    bounds = [(at, b.low, b.high) for at, b in scores if b.low is not None and b.high is not None]
    if bounds:
        ends = [(at, high) for at, _, high in bounds] + [(at, low) for at, low, _ in bounds[::-1]]
        parts.append(tag("polygon", points=_path(ends, x, y), class_="band s0"))
    parts.append(tag("polyline", points=_path(on_all, x, y), class_="line s2 dashed"))
    parts.append(tag("polyline", points=_path([(at, b.value) for at, b in scores], x, y), class_="line s0"))
    return svg(title, description, LEFT + EDGE + 10, TOP + EDGE + 20, parts, "small")


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    """Points as SVG has them, kept within the axes."""
    return " ".join(f"{x(a)},{y(min(max(b, y.low), y.high))}" for a, b in points)


def _square(left: float, right: float, low: float, high: float, log: bool = False) -> tuple[Scale, Scale, list[Markup]]:
    """Scales of a small square, its frame, and the ends of both axes as ticks (0 for a lower end below it)."""
    x, y = Scale(left, right, LEFT, LEFT + EDGE, log), Scale(low, high, TOP + EDGE, TOP)
    parts = [tag("rect", x=LEFT, y=TOP, width=EDGE, height=EDGE, class_="frame")]
    for value in (max(low, 0.0), high):
        parts.append(text(LEFT - 4, y(value) + 4, _tick(value), "end", "tick"))
    for value, anchor in ((left, "start"), (right, "end")):
        parts.append(text(x(value), TOP + EDGE + 14, _tick(value), anchor, "tick"))
    return x, y, parts


def _tick(value: float) -> str:
    return plain(float(f"{value:.2g}"))
