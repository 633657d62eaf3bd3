"""The scale of scores of any origin: probabilities, percent or logits, decided by their values alone.

Each finding's scores are looked at by themselves, and a table's findings must agree. What is beyond doubt is read and
noted; the rest is refused with the finding, its minimum and its maximum, and the scale must be given. Whatever is read
keeps its order: average precision compares scores, and rounding would tie those near 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import cell

PROBABILITY, PERCENT, LOGIT = SCALES = ("probability", "percent", "logit")
ROUNDING = 1e-4  # by which probabilities may lie beyond 0 and 1; sigmoids in float32 and means in float16 do
BOUNDS = {PROBABILITY: (0.0, 1.0), PERCENT: (0.0, 100.0), LOGIT: (-np.inf, np.inf)}
HIGH_LOGIT = 20.0  # of a finding without negative scores: logits go up to here, percents are known to from here
_NAMES = {PROBABILITY: "probabilities", PERCENT: "percentages", LOGIT: "logits"}
SOME = 0.005  # the share of scores beyond 0 or 1, two at least, that is no accident
SAY = "convert them to probabilities, or say what they are by --scores probability, percent or logit"


@dataclass(frozen=True)
class Scaled:
    """Scores as probabilities float64 [N, C], their scale, and notes on how they were read, a clause each."""

    probabilities: np.ndarray
    scale: str
    notes: list[str]


@dataclass(frozen=True)
class _Column:
    """A finding's scores that are there, float64 [n]: its name and extremes."""

    name: str
    scores: np.ndarray

    @property
    def low(self) -> float:
        return float(self.scores.min())

    @property
    def high(self) -> float:
        return float(self.scores.max())

    def scales(self) -> tuple[str, ...]:
        """The scales that these scores may be on, if they alone are looked at; () where none is likely."""
        low, high = self.low, self.high
        if within(PROBABILITY, low, high):
            return (PROBABILITY,)
        if within(PERCENT, low, high):
            return (PERCENT,) if high > HIGH_LOGIT else (PERCENT, LOGIT)
        beyond = (self.scores < 0) | (self.scores > 1)
        return (LOGIT,) if low < 0 and beyond.mean() > 0.5 else ()

    def __str__(self) -> str:
        return f"finding '{self.name}' has scores from {number(self.low)} to {number(self.high)}"


def scale_of(scores: np.ndarray, findings: Sequence[str]) -> str:
    """The scale of a table of scores: one of SCALES.

    scores: float [N, C]; nan where there is none. findings: [C] names. A finding with one score throughout says nothing
    where others say more. Raises CxrltError, a clause without a full stop, where it is in doubt.

    >>> scale_of(np.array([[0.1, 0.9], [0.7, 1.0000001]]), ["Mass", "Edema"])
    'probability'
    >>> scale_of(np.array([[3.0, 12.5], [41.0, 99.0]]), ["Mass", "Edema"])
    'percent'
    """
    columns = _columns(scores, findings)
    columns = [column for column in columns if column.low < column.high] or columns
    if not columns:
        return PROBABILITY
    by_column = [column.scales() for column in columns]
    common = [scale for scale in SCALES if all(scale in scales for scales in by_column)]
    if not common:
        raise CxrltError(_disagreement(columns, by_column))
    widest = max(columns, key=lambda column: column.high - column.low)
    if len(common) > 1:
        raise CxrltError(f"{widest}: these may be {_listed(common)}")
    if common[0] != PROBABILITY and not _in_numbers(columns, common[0]):
        raise CxrltError(f"{widest}, but too few scores beyond 0 and 1 to tell whether these are {_NAMES[common[0]]}")
    return common[0]


def read_scores(
    scores: np.ndarray,
    findings: Sequence[str],
    where: str,
    scale: str | None = None,
    *,
    name: str | None = None,
    by: str = "as --scores says",
    mend: str = SAY,
) -> Scaled:
    """Scores of any scale as probabilities; within a finding they keep their order, strictly.

    scores: float64 [N, C], finite, or nan where there is none. findings: [C] names. where: the file. scale: one of
    SCALES; None: as `scale_of` says. name: how notes call them; `where` without it. by: who gave `scale`. mend: what
    errors advise.
    Raises CxrltError where the scale is in doubt, or scores are beyond it by more than ROUNDING.
    """
    if scale is None:
        try:
            known = scale_of(scores, findings)
        except CxrltError as doubt:
            raise CxrltError(f"{where}: {doubt}: {mend}.") from None
    else:
        known = scale
    columns = _columns(scores, findings)
    if wrong := [column for column in columns if not within(known, column.low, column.high)]:
        least, most = BOUNDS[known]
        raise CxrltError(f"{where}: {wrong[0]}, where {_NAMES[known]} are from {least:g} to {most:g}: {mend}.")
    return Scaled(
        _probabilities(scores, known), known, _notes(columns, known, f", {by}" if scale else "", name or where)
    )


def within(scale: str, low: float, high: float) -> bool:
    """Whether scores from `low` to `high` can be on `scale`, within ROUNDING."""
    least, most = BOUNDS[scale]
    room = ROUNDING * (most if scale == PERCENT else 1)
    return least - room <= low and high <= most + room


def in_order(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`values` [N, C] in [0, 1], moved by units in the last place where they are equal and `order` [N, C] is not.

    values must not fall where order rises. Float32 or float64; nan stays. So rounding ties no scores.

    >>> in_order(np.float32([[1.0], [1.0], [0.5]]), np.array([[7.0], [8.0], [0.0]])).ravel().tolist()
    [0.9999999403953552, 1.0, 0.5]
    """
    kept = values.copy()
    integer = np.int32 if values.dtype == np.float32 else np.int64
    for c in range(values.shape[1]):
        known = ~np.isnan(values[:, c])
        _, first, place = np.unique(order[known, c], return_index=True, return_inverse=True)
        levels = values[known, c][first].view(integer)  # floats from 0 up are ordered as their bits are
        if (np.diff(levels) <= 0).any():
            steps = np.arange(len(levels), dtype=integer)
            levels = steps + np.minimum.accumulate((levels - steps)[::-1])[::-1]  # 1 stays, those below it give way
            levels = np.maximum(levels, steps)  # at 0 those above it do
        kept[known, c] = levels.view(values.dtype)[place]
    return kept


def rounded(values: np.ndarray) -> np.ndarray:
    """Values float64 [N, C] in [0, 1] as float32, their order kept strictly."""
    return in_order(values.astype(np.float32), values)


def number(value: float) -> str:
    """A score as a message may show it, in four digits; where these would show a bound of a scale, in eight.

    >>> number(0.123456), number(1.0000001)
    ('0.1235', '1.0000001')
    """
    short = f"{value:.4g}"
    return short if abs(value) < 1000 and float(short) not in (0, 1, 100) else cell(value)


def _columns(scores: np.ndarray, findings: Sequence[str]) -> list[_Column]:
    """The findings that have scores."""
    present = [column[~np.isnan(column)] for column in scores.T]
    return [_Column(str(name), column) for name, column in zip(findings, present, strict=True) if column.size]


def _in_numbers(columns: Sequence[_Column], scale: str) -> bool:
    """Whether so many scores are beyond 0 (of logits) and 1 that it is no accident."""
    values = np.concatenate([column.scores for column in columns])
    least = max(2, SOME * values.size)
    return (values > 1).sum() >= least and (scale != LOGIT or (values < 0).sum() >= least)


def _disagreement(columns: Sequence[_Column], by_column: Sequence[tuple[str, ...]]) -> str:
    """The clause that refuses a table whose findings have no scale in common; it names the one unlike most."""
    counts = Counter(by_column)
    apart = [[j for j, theirs in enumerate(by_column) if not set(theirs) & set(scales)] for scales in by_column]
    odd = min((k for k, others in enumerate(apart) if others), key=lambda k: (bool(by_column[k]), counts[by_column[k]]))
    if not by_column[odd]:
        return f"{columns[odd]}, which are no probabilities, and neither percentages nor logits beyond doubt"
    other = apart[odd][0]
    return (
        f"{columns[odd]} ({_listed(by_column[odd])}) where {columns[other]} ({_listed(by_column[other])}); all "
        "findings must be on one scale"
    )


def _probabilities(scores: np.ndarray, scale: str) -> np.ndarray:
    if scale == LOGIT:
        from scipy.special import expit

        values = expit(scores)
    else:
        values = np.clip(scores / BOUNDS[scale][1], 0, 1) + 0.0  # which turns -0 into 0
    return values if np.array_equal(values, scores, equal_nan=True) else in_order(values, scores)


def _notes(columns: Sequence[_Column], scale: str, by: str, name: str) -> list[str]:
    """What a user should know of how scores were read."""
    notes, (least, most) = [], BOUNDS[scale]
    if columns and scale != PROBABILITY:
        low, high = min(columns, key=lambda column: column.low), max(columns, key=lambda column: column.high)
        though = ", though all lie from 0 to 1" if within(PROBABILITY, low.low, high.high) else ""
        extremes = f"from {number(low.low)} ('{low.name}') to {number(high.high)} ('{high.name}')"
        notes.append(f"scores of {name}, {extremes}, are taken as {_NAMES[scale]}{by}{though}")
    beyond = {column.name: int(((column.scores < least) | (column.scores > most)).sum()) for column in columns}
    if count := sum(beyond.values()):
        first = next(column for column in columns if beyond[column.name])
        extreme = first.high if first.high > most else first.low
        scores = "1 score" if count == 1 else f"{count:,} scores"
        notes.append(
            f"{scores} of {name} beyond {least:g} to {most:g} by rounding clipped: finding '{first.name}' has "
            f"{number(extreme)}"
        )
    constant = [column for column in columns if column.scores.size > 1 and column.low == column.high]
    if constant:
        one, value = f"'{constant[0].name}'", number(constant[0].low)
        notes.append(
            f"finding {one} of {name} has one score for all images ({value}): it ranks none before another"
            if len(constant) == 1
            else f"{len(constant)} findings of {name} have one score for all images each ({one}: {value}): they rank "
            "none before another"
        )
    return notes


def _listed(scales: Sequence[str]) -> str:
    return " or ".join(_NAMES[scale] for scale in scales)
