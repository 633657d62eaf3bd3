"""What a finding is taken for: which other findings are over-represented among its highest-scored negatives.

Of finding c, the images that are negative for it and score highest are its likeliest false positives. If 40 % of them
have finding d, and 10 % of all of c's negatives have it, d is over-represented four times: the model takes d for c, or
takes what comes with d for it. The threshold at which the highest ones begin counts as given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxrlt_ray.evaluation.corrected import holm
from cxrlt_ray.evaluation.metrics import numbered

FEWEST = 5  # subjects behind a count that is shown
LEAST_TOP = 20  # highest negatives of a finding: of fewer nothing is said
SHARE = 0.2  # of a finding's negatives that are at most its highest
LEVEL = 0.95


@dataclass(frozen=True)
class Confusions:
    """For findings (rows) and other findings (columns) [C, C]; nan (-1 for counts) where suppressed or not known.

    top: how many negatives of a finding are its highest, int64 [C]; 0 where there are too few. counts: how many of
    them have the other finding. shares: the same as a share of those that are labelled for it. base: its share among
    all negatives. ratio: shares / base, with the bounds of its 95 % interval. corrected: p values of ratio 1, by Holm
    for all that are shown.
    """

    top: np.ndarray
    counts: np.ndarray
    shares: np.ndarray
    base: np.ndarray
    ratio: np.ndarray
    low: np.ndarray
    high: np.ndarray
    corrected: np.ndarray


def confusions(targets: np.ndarray, scores: np.ndarray, subjects: np.ndarray, fewest: int = FEWEST) -> Confusions:
    """The confusions of scores [N, C] with targets [N, C] (1, 0 or -1) of subjects [N].

    A finding's highest negatives are as many as it has positives (at the threshold that calls out as many images as
    have the finding, all false positives are among them), at least LEAST_TOP, at most SHARE of all its negatives; of
    equal scores all or none. A cell behind which fewer than `fewest` subjects stand is suppressed. The interval of the
    ratio is on the logarithmic scale, by linearisation with subjects as clusters (Cochran 1977, 6.4), with Student's t
    of as many degrees of freedom as subjects stand behind the cell, less one.
    """
    count, subject = targets.shape[1], numbered(subjects)
    top = np.zeros(count, np.int64)
    counts = np.full((count, count), -1)
    shares, base, error, degrees = (np.full((count, count), np.nan) for _ in range(4))
    for c in range(count):
        negatives = np.flatnonzero(targets[:, c] == 0)
        chosen = highest(scores[negatives, c], int((targets[:, c] == 1).sum()))
        top[c] = int(chosen.sum())
        if not top[c]:
            continue
        row = _row(targets[negatives], chosen, subject[negatives])
        shown = (row[4] >= fewest) & (np.arange(count) != c)
        for into, values in zip((counts, shares, base, error, degrees), row, strict=True):
            into[c, shown] = values[shown]
    return _estimated(top, counts, shares, base, error, degrees)


def highest(scores: np.ndarray, positives: int) -> np.ndarray:
    """Which of a finding's negatives [n] are its highest, bool [n]; none where there are too few, or all are equal."""
    wanted = min(max(positives, LEAST_TOP), int(SHARE * len(scores)))
    if wanted < LEAST_TOP:
        return np.zeros(len(scores), bool)
    threshold = np.partition(scores, -wanted)[-wanted]
    chosen = scores >= threshold
    if chosen.sum() > SHARE * len(scores):  # of equal scores at the threshold all, or else none
        chosen = scores > threshold
    return chosen if chosen.sum() >= LEAST_TOP else np.zeros(len(scores), bool)


def _row(targets: np.ndarray, chosen: np.ndarray, subject: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of a finding's negatives: counts, shares, base, the standard error of log ratio, and subjects behind each [C].

    targets: int8 [n, C] of the negatives. chosen: bool [n]. subject: int64 [n].
    """
    known, positive = (targets >= 0).astype(np.float32), (targets == 1).astype(np.float32)
    labelled, of_top = known.sum(axis=0), known[chosen].sum(axis=0)
    counts = positive[chosen].sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share, base = counts / of_top, positive.sum(axis=0) / labelled
        # what a subject adds to log share - log base, each a ratio of totals
        involved, into = np.unique(subject, return_inverse=True)
        sums = (base * _totals(known, into) - _totals(positive, into)) / (labelled * base)
        held, into = np.unique(subject[chosen], return_inverse=True)
        positives = _totals(positive[chosen], into)
        sums[np.searchsorted(involved, held)] += (positives - share * _totals(known[chosen], into)) / (of_top * share)
    factor = len(involved) / max(len(involved) - 1, 1)
    error = np.sqrt((sums.astype(float) ** 2).sum(axis=0) * factor)
    return counts, share, base, error, (positives > 0).sum(axis=0)


def _totals(values: np.ndarray, into: np.ndarray) -> np.ndarray:
    """Sums float32 [S, C] of the rows of values [n, C] by their subject's number [n]."""
    from scipy.sparse import csr_matrix

    shape = (int(into.max()) + 1, len(into))
    return csr_matrix((np.ones(len(into), np.float32), (into, np.arange(len(into)))), shape=shape) @ values


def _estimated(
    top: np.ndarray, counts: np.ndarray, shares: np.ndarray, base: np.ndarray, error: np.ndarray, subjects: np.ndarray
) -> Confusions:
    from scipy.stats import t

    ratio = shares / base
    degrees = np.maximum(subjects - 1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(error > 0, error, np.nan)
        half = t.ppf((1 + LEVEL) / 2, degrees) * error
        p = 2 * t.sf(np.abs(np.log(ratio)) / error, degrees)
    corrected = holm(p.ravel()).reshape(p.shape)
    return Confusions(top, counts, shares, base, ratio, ratio * np.exp(-half), ratio * np.exp(half), corrected)


def worst(targets: np.ndarray, scores: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a finding's `most` highest-scored negatives and lowest-scored positives, the worst first.

    targets, scores: [N]. Of equal scores the first row is first.
    """
    negatives, positives = np.flatnonzero(targets == 0), np.flatnonzero(targets == 1)
    high = negatives[np.argsort(-scores[negatives], kind="stable")[:most]]
    return high, positives[np.argsort(scores[positives], kind="stable")[:most]]


def ranks(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The place of each image by its score among those labelled for the finding, 1 the highest; int64 [N].

    Equal scores share the best of their places; -1 for an image without a label.
    """
    known = np.flatnonzero(targets >= 0)
    ordered = np.sort(scores[known])
    places = np.full(len(targets), -1, np.int64)
    places[known] = 1 + len(known) - np.searchsorted(ordered, scores[known], side="right")
    return places
