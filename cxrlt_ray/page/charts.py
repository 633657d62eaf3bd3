"""Charts as inline SVG, drawn by hand: no library's script, no style but the page's own classes.

Each chart has a <title> and a <desc>, and each mark its value as a tooltip. Values that are not known (None) are left
out; the table behind a chart says that they are not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cxrlt_ray.page.svg import SERIES, WIDTH, Scale, legend, plain, shortened, svg, tag, text, x_axis, y_axis

ROW, CELL = 22, 20  # pixels of a row of names, of a heatmap
FEW = 5  # distinct numbers that stand on an axis like words, evenly apart
TOOLTIPS = 1500  # cells of a heatmap above which they have none: the table behind it has the values
KEY_WIDTH = 210  # of a heatmap's shades with their numbers


@dataclass(frozen=True)
class Mark:
    """A value with the bounds of its interval (None where there is none) of series `series`."""

    value: float
    low: float | None = None
    high: float | None = None
    series: int = 0
    name: str = ""


@dataclass(frozen=True)
class Line:
    """A named line through `points` (x, y). strong: drawn above the others, with its name at its end."""

    name: str
    points: Sequence[tuple[float, float]]
    series: int = 0
    strong: bool = False
    dashed: bool = False
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = ()  # x, low, high


@dataclass(frozen=True)
class Dot:
    """A point of a scatter plot."""

    name: str
    x: float
    y: float
    series: int = 0
    labelled: bool = False


def lines(
    title: str, description: str, drawn: Sequence[Line], x_title: str, y_title: str, log_x: bool = False
) -> Markup:
    """Lines over x: strong ones in front, named at their ends where there are few, else in a legend."""
    named = [(line.name, line.series) for line in drawn if line.strong]
    head, used = legend(list(dict.fromkeys(named)), 44, 34)
    top, bottom, left, right = 26 + used, 320 + used, 44.0, WIDTH - 14.0
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points] + [v for line in drawn for b in line.band for v in b[1:]]
    x, y = Scale.over(xs, left, right, log_x, 0.02), Scale.over(ys, bottom, top)
    parts: list[object] = [*y_axis(y, left, right, y_title), *x_axis(x, bottom, top, x_title), *head]
    for line in sorted(drawn, key=lambda line: line.strong):
        parts += _line(line, x, y)
    return svg(title, description, WIDTH, bottom + 42, parts, "lines")


def _line(line: Line, x: Scale, y: Scale) -> list[Markup]:
    tone = f"s{line.series % SERIES}" if line.strong else "weak"
    style = f"{tone}{' dashed' if line.dashed else ''}"
    parts = []
    if line.band:
        ends = [f"{x(a)},{y(high)}" for a, _, high in line.band] + [f"{x(a)},{y(low)}" for a, low, _ in line.band[::-1]]
        parts.append(tag("polygon", points=" ".join(ends), class_=f"band {style}"))
    tip = tag("title", line.name)
    if len(line.points) > 1 and not line.dots:
        path = " ".join(f"{x(a)},{y(b)}" for a, b in line.points)
        parts.append(tag("polyline", tip, points=path, class_=f"line {style}"))
    if len(line.points) == 1 or line.dots:
        for a, b in line.points:
            content = tag("title", f"{line.name}: {plain(round(a, 4))}, {plain(round(b, 4))}")
            parts.append(tag("circle", content, cx=x(a), cy=y(b), r=3.5, class_=style))
    return parts


def intervals(
    title: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[Mark]]],
    series: Sequence[str],
    x_title: str,
    zero: bool = False,
    named: bool = False,
) -> Markup:
    """A row a name, in it a mark a series: a dot with its interval. zero: a line there; named: a legend even of one."""
    left, right = 190.0, WIDTH - 20.0
    head, used = legend([(name, k) for k, name in enumerate(series)], 8, 14) if named or len(series) > 1 else ([], 2)
    heights = [max(ROW, 8 + 13 * len(marks)) for _, marks in rows]
    top = 4.0 + used
    bottom = top + sum(heights)
    values = [v for _, marks in rows for m in marks for v in (m.value, m.low, m.high) if v is not None]
    x = Scale.over([*values, *([0.0] if zero else [])], left, right)
    parts: list[object] = [*x_axis(x, bottom, top, x_title), *head]
    if zero:
        parts.append(tag("line", x1=x(0), x2=x(0), y1=top, y2=bottom, class_="axis"))
    at = top
    for (name, marks), height in zip(rows, heights, strict=True):
        parts.append(text(left - 10, at + height / 2 + 4, name, "end"))
        for k, mark in enumerate(marks):
            parts += _interval(mark, x, at + height / 2 + 13 * (k - (len(marks) - 1) / 2))
        at += height
    return svg(title, description, WIDTH, bottom + 42, parts, "intervals")


def _interval(mark: Mark, x: Scale, y: float) -> list[Markup]:
    tone, bounds = f"s{mark.series % SERIES}", ""
    parts = []
    if mark.low is not None and mark.high is not None:
        bounds = f" [{plain(round(mark.low, 4))}, {plain(round(mark.high, 4))}]"
        parts.append(tag("line", x1=x(mark.low), x2=x(mark.high), y1=f"{y:g}", y2=f"{y:g}", class_=f"whisker {tone}"))
    tip = tag("title", f"{mark.name} {plain(round(mark.value, 4))}{bounds}".strip())
    return [*parts, tag("circle", tip, cx=x(mark.value), cy=f"{y:g}", r=4.5, class_=tone)]


def bars(title: str, description: str, rows: Sequence[tuple[str, float]], x_title: str) -> Markup:
    """A bar a name from 0."""
    left, right, top = 190.0, WIDTH - 20.0, 6.0
    bottom = top + ROW * len(rows)
    largest = max((value for _, value in rows), default=0.0)
    x = Scale(0.0, largest * 1.04 or 1.0, left, right)
    parts: list[object] = list(x_axis(x, bottom, top, x_title))
    for k, (name, value) in enumerate(rows):
        y = top + ROW * k
        parts.append(text(left - 10, y + ROW / 2 + 4, name, "end"))
        tip = tag("title", f"{name}: {plain(round(value, 4))}")
        wide = max(x(value) - left, 0.5)
        parts.append(tag("rect", tip, x=left, y=y + 4, width=f"{wide:.1f}", height=ROW - 8, rx=2, class_="s0"))
    return svg(title, description, WIDTH, bottom + 42, parts, "bars")


def scatter(
    title: str,
    description: str,
    dots: Sequence[Dot],
    x_title: str,
    y_title: str,
    log: tuple[bool, bool] = (False, False),
    front: Sequence[tuple[float, float]] = (),
    diagonal: bool = False,
    series: Sequence[tuple[str, int]] = (),
) -> Markup:
    """Points, the names of those `labelled`; front: a stepped line; diagonal: x = y, and one scale for both."""
    head, used = legend(series, 44, 34) if series else ([], 0)
    top, bottom, left, right = 26 + used, 330 + used, 52.0, WIDTH - 20.0
    both = [v for d in dots for v in (d.x, d.y)]
    x = Scale.over(both if diagonal else [d.x for d in dots], left, right, log[0])
    y = Scale.over(both if diagonal else [d.y for d in dots], bottom, top, log[1])
    parts: list[object] = [*y_axis(y, left, right, y_title), *x_axis(x, bottom, top, x_title), *head]
    if diagonal:
        parts.append(tag("line", x1=left, y1=bottom, x2=right, y2=top, class_="axis dashed"))
    if front:
        path = " ".join(
            f"{x(a)},{y(b)}" if k == 0 else f"{x(a)},{y(front[k - 1][1])} {x(a)},{y(b)}"
            for k, (a, b) in enumerate(front)
        )
        parts.append(tag("polyline", points=path, class_="line s1 dashed"))
    taken: list[tuple[float, float]] = []
    for dot in sorted(dots, key=lambda dot: dot.labelled):
        tip = tag("title", f"{dot.name}: {plain(round(dot.x, 5))}, {plain(round(dot.y, 5))}")
        parts.append(tag("circle", tip, cx=x(dot.x), cy=y(dot.y), r=5, class_=f"s{dot.series % SERIES} dot"))
        place = (x(dot.x), y(dot.y))
        if dot.labelled and not any(abs(place[0] - a) < 90 and abs(place[1] - b) < 13 for a, b in taken):
            taken.append(place)
            end = place[0] > right - 120
            parts.append(
                text(place[0] + (-8 if end else 8), place[1] - 6, dot.name, "end" if end else "start", most=22)
            )
    return svg(title, description, WIDTH, bottom + 42, parts, "scatter")


def heatmap(
    title: str,
    description: str,
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    low: float = 0.0,
    high: float | None = None,
) -> Markup:
    """Cells [R, C] the darker the nearer to `high` (default: the largest value); names at the left and above."""
    known = [v for row in values for v in row if v is not None]
    high = max(known, default=1.0) if high is None else high
    span = (high - low) or 1.0
    left, top = 190.0, 18 + 5.9 * max((len(shortened(name, 24)) for name in columns), default=0)
    cell = min(44.0, max(9.0, (WIDTH - left - 90) / max(len(columns), 1)))
    parts: list[object] = []
    for k, name in enumerate(columns):
        at = left + cell * (k + 0.5)
        label = text(0, 4, name, "start", most=24)
        parts.append(tag("g", label, transform=f"translate({at:.1f} {top - 8:g}) rotate(-55)"))
    tips = len(rows) * len(columns) <= TOOLTIPS
    for r, name in enumerate(rows):
        y = top + CELL * r
        parts.append(text(left - 10, y + CELL / 2 + 4, name, "end"))
        for c, value in enumerate(values[r]):
            if value is None:
                continue
            share = min(max((value - low) / span, 0.0), 1.0)
            tip = tag("title", f"{name}, {columns[c]}: {plain(round(value, 3))}") if tips else ""
            place = {"x": f"{left + cell * c:.1f}", "y": f"{y:g}", "width": f"{cell - 1:.1f}", "height": CELL - 1}
            parts.append(tag("rect", tip, class_="heat", fill_opacity=f"{share:.2f}".rstrip("0").rstrip("."), **place))
    width = max(left + cell * len(columns) + 90, left + KEY_WIDTH)
    bottom = top + CELL * len(rows)
    parts += _shades(left, bottom + 16, low, high)
    return svg(title, description, width, bottom + 40, parts, "heatmap")


def _shades(x: float, y: float, low: float, high: float) -> list[Markup]:
    """The key of a heatmap's shades."""
    parts = [text(x, y + 10, plain(round(low, 3)), kind="tick")]
    for k in range(6):
        opacity = f"{k / 5:.1f}"
        parts.append(
            tag("rect", x=f"{x + 40 + 18 * k:g}", y=y, width=17, height=12, class_="heat", fill_opacity=opacity)
        )
    return [*parts, text(x + 156, y + 10, plain(round(high, 3)), kind="tick")]


def parallel(
    title: str,
    description: str,
    axes: Sequence[tuple[str, Sequence[float | str | None]]],
    names: Sequence[str],
    scores: Sequence[float],
) -> Markup:
    """A line a trial through its settings: an axis a parameter, the darker the line the better the trial.

    axes: name and values [N]; words stand in order of first appearance. None (a parameter it does not have) is a gap.
    """
    top, bottom = 52.0, 320.0
    width = max(WIDTH, 110 * len(axes) + 60)
    places = [40 + k * (width - 110) / max(len(axes) - 1, 1) for k in range(len(axes))]
    parts: list[object] = []
    scales = []
    for k, (name, values) in enumerate(axes):
        scale = _values_scale(values, bottom, top)
        scales.append(scale)
        parts.append(tag("line", x1=f"{places[k]:.1f}", x2=f"{places[k]:.1f}", y1=top, y2=bottom, class_="axis"))
        parts.append(text(places[k], 20 if k % 2 == 0 else 36, name, "middle" if k else "start", "name", 18))
        for value, at in scale[1]:
            parts.append(text(places[k] + 5, at + 4, value, "start", "tick", 14))
    best, worst = max(scores, default=1.0), min(scores, default=0.0)
    order = sorted(range(len(names)), key=lambda n: scores[n])
    for n in order:
        share = (scores[n] - worst) / ((best - worst) or 1.0)
        tip = tag("title", f"{names[n]}: {plain(round(scores[n], 4))}")
        for points in _runs([(places[k], scales[k][0].get(values[n])) for k, (_, values) in enumerate(axes)]):
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            opacity = f"{0.12 + 0.88 * share**2:.2f}"
            parts.append(tag("polyline", tip, points=path, class_="line s0", stroke_opacity=opacity))
    return svg(title, description, width, bottom + 24, parts, "parallel")


def _values_scale(
    values: Sequence[float | str | None], start: float, end: float
) -> tuple[dict[float | str | None, float], list[tuple[str, float]]]:
    """The place of each value on an axis, and its ticks."""
    known = [v for v in values if v is not None]
    numbers = [float(v) for v in known if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) == len(known) and len(set(numbers)) > FEW:
        low, high = min(numbers), max(numbers)
        scale = Scale(low, high, start, end, low > 0 and high / low > 30)
        ticks = [(plain(float(f"{t:.3g}")), scale(t)) for t in (low, *scale.ticks(4), high)]
        apart = [tick for k, tick in enumerate(ticks) if k == 0 or all(abs(tick[1] - t[1]) > 14 for t in ticks[:k])]
        return {v: scale(float(v)) for v in known}, apart
    words = sorted(set(numbers)) if len(numbers) == len(known) else list(dict.fromkeys(known))
    step = (end - start) / max(len(words) - 1, 1)
    at: dict[float | str | None, float] = {
        w: start + step * k if len(words) > 1 else (start + end) / 2 for k, w in enumerate(words)
    }
    return at, [(plain(w) if isinstance(w, float) else str(w), y) for w, y in at.items()]


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The stretches of a line between gaps, each of two points or more."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if len(run) > 1]


def precision_recall(title: str, description: str, points: Sequence[tuple[float, float]], chance: float) -> Markup:
    """A small square: precision over recall, and the share of positives as a dashed line."""
    edge, left, top = 104.0, 26.0, 6.0
    x, y = Scale(0, 1, left, left + edge), Scale(0, 1, top + edge, top)
    parts: list[object] = [tag("rect", x=left, y=top, width=edge, height=edge, class_="frame")]
    for value in (0, 1):
        parts.append(text(left - 5, y(value) + 4, str(value), "end", "tick"))
        parts.append(text(x(value), top + edge + 14, str(value), "middle", "tick"))
    parts.append(tag("line", x1=x(0), x2=x(1), y1=y(chance), y2=y(chance), class_="axis dashed"))
    path = " ".join(f"{x(recall)},{y(precision)}" for recall, precision in points)
    parts.append(tag("polyline", points=path, class_="line s0"))
    return svg(title, description, left + edge + 8, top + edge + 20, parts, "small")
