"""A report with its marks, for `label --explain`; what labelling came to."""

from __future__ import annotations

from collections.abc import Sequence

from cxrlt_ray.labelling.labeller import Reading, Span

VALUES = {1: "1", 0: "0", -1: "-1", None: "no statement"}


def marked(text: str, reading: Reading) -> str:
    """The report, each mention as [words|number], and a line a number: finding, value, section, phrase, trigger."""
    places = sorted({(span.begin, span.end) for span in reading.spans})
    numbers = {place: k for k, place in enumerate(_apart(places), 1)}
    parts, at = [], 0
    for (begin, end), k in numbers.items():
        parts += [text[at:begin], f"[{text[begin:end]}|{k}]"]
        at = end
    lines = ["".join([*parts, text[at:]]).rstrip(), "", f"read: {reading.source}"]
    for span in sorted(reading.spans, key=lambda s: (s.begin, s.end)):
        lines.append(f"  {_number(span, numbers):>3} {_line(span)}")
    labels = ", ".join(f"{name} {value}" for name, value in reading.labels.items())
    return "\n".join([*lines, f"labels: {labels or 'none'}"])


def _apart(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Places that do not overlap: of two the first."""
    kept: list[tuple[int, int]] = []
    for begin, end in places:
        if not kept or begin >= kept[-1][1]:
            kept.append((begin, end))
    return kept


def _number(span: Span, numbers: dict[tuple[int, int], int]) -> str:
    """The number of the mark in which a mention lies."""
    return next((str(k) for (b, e), k in numbers.items() if b < span.end and span.begin < e), "-")


def _line(span: Span) -> str:
    trigger = f", by '{span.trigger}'" if span.trigger else ""
    section = f" in {span.section}" if span.section else ""
    return f"{span.finding}: {VALUES[span.value]}{section}, sentence {span.sentence}: '{span.phrase}'{trigger}"


def normal_share(normal: int, studies: int) -> str:
    """How many are Normal, beside CXR-LT's train."""
    share = 100 * normal / max(studies, 1)
    return f"Normal: {normal:,} of {studies:,} studies ({share:.1f} %; CXR-LT 2024's train: 13 %)."
