"""Numbers and words of report.json as the page writes them: each carries the path (RFC 6901) of its place there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from pydantic import JsonValue

from cxrlt_ray import cli
from cxrlt_ray.page.parts import Kind
from cxrlt_ray.page.svg import plain

UNKNOWN = Markup('<span class="unknown" title="not known">–</span>')


def resolve(document: JsonValue, path: str) -> JsonValue:
    """What stands at a JSON pointer ("/sections/data/splits/0/images"); None where nothing does."""
    value = document
    for part in path.strip("/").split("/") if path.strip("/") else []:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, Sequence) and not isinstance(value, str) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def written(value: float, kind: Kind) -> str:
    """A number as a person reads it.

    >>> written(0.28712, "score"), written(0.0123, "percent"), written(5400.0, "seconds"), written(-0.004, "gain")
    ('.287', '1.23 %', '1.5 h', '-0.004')
    """
    if kind in ("score", "score_interval"):
        return cli.short(value)
    if kind in ("gain", "gain_interval"):
        return f"{value:+.3f}"
    if kind == "percent":
        return f"{100 * value:.{0 if value >= 0.9995 else 1 if value >= 0.1 else 2}f} %"
    if kind == "seconds":
        return cli.duration(value)
    if kind == "bytes":
        return cli.size(value)
    if kind == "count":
        return f"{value:,.0f}"
    return plain(float(f"{value:.3g}"))


def cell(document: JsonValue, path: str, kind: Kind) -> Markup:
    """What stands at `path` of report.json, as a piece of the page."""
    value = resolve(document, path)
    if isinstance(value, dict):
        return _interval(value, path, kind)
    if value is None or value == "":
        return UNKNOWN if kind not in ("text", "code") else Markup("")
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, int | float) and kind not in ("text", "code"):
        return _number(value, path, kind)
    name = "code" if kind == "code" else "span"
    return Markup('<{0} data-path="{1}">{2}</{0}>').format(Markup(name), path, value)


def _number(value: float, path: str, kind: Kind) -> Markup:
    return Markup('<data value="{}" data-path="{}">{}</data>').format(repr(value), path, written(value, kind))


def _interval(value: Mapping[str, JsonValue], path: str, kind: Kind) -> Markup:
    numbers = {end: value.get(end) for end in ("value", "low", "high")}
    at, low, high = (n if isinstance(n, int | float) else None for n in numbers.values())
    if at is None:
        return UNKNOWN
    shown = _number(at, f"{path}/value", kind)
    if low is None or high is None:
        return shown + Markup(
            ' <span class="few" title="none is given: too few positive subjects, or not resampled">[–]</span>'
        )
    ends = Markup("{}, {}").format(_number(low, f"{path}/low", kind), _number(high, f"{path}/high", kind))
    return shown + Markup(' <span class="ci">[{}]</span>').format(ends)
