"""What predictions are worth, per finding, as scikit-learn computes it, ties included; and bootstrap by subject.

targets: int8 [N, C], 1, 0 or -1 (not labelled: left out of that finding). scores: float [N, C] in [0, 1].
A finding that has no positive (or for AUROC no negative) has no value: nan, and stands in no mean. AP and
AUROC need one sort a finding; a bootstrap reuses it and counts LANES rounds at once:
39,293 images of 40 findings, 1,000 rounds, in about 3 s on 2 cores (and 2 to 6 s once, to compile).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cxrlt_ray.cluster.processors import available_processors

BINS = 15
LANES = 64  # bootstrap rounds counted side by side: one SIMD loop
Metric = Callable[[np.ndarray, np.ndarray], float]


def average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    """AP of one finding, targets [N] and scores [N]: sum over thresholds of (R_k - R_k-1) P_k, as scikit-learn."""
    targets, scores = _known(targets, scores)
    if not targets.any():
        return float("nan")
    true, false = _counts(targets, scores)
    return float(np.sum(np.diff(true, prepend=0) / true[-1] * (true / (true + false))))


def auroc(targets: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of one finding by the trapezoid rule; nan where one class is absent."""
    targets, scores = _known(targets, scores)
    if not targets.any() or targets.all():
        return float("nan")
    true, false = _counts(targets, scores)
    return float(np.trapezoid(np.r_[0, true] / true[-1], np.r_[0, false] / false[-1]))


def f1(targets: np.ndarray, scores: np.ndarray) -> float:
    """F1 at 0.5 of one finding: 2 TP / (2 TP + FP + FN); nan without positives."""
    targets, scores = _known(targets, scores)
    if not targets.any():
        return float("nan")
    predicted = scores >= 0.5
    return float(2 * (predicted & targets).sum() / (predicted.sum() + targets.sum()))


def fnr(targets: np.ndarray, scores: np.ndarray) -> float:
    """False-negative rate at 0.5 of one finding; nan without positives."""
    targets, scores = _known(targets, scores)
    return float((scores[targets] < 0.5).mean()) if targets.any() else float("nan")


def ece(targets: np.ndarray, scores: np.ndarray) -> float:
    """Expected calibration error of one finding: |mean p - rate of positives| over 15 equal bins of p, weighted."""
    targets, scores = _known(targets, scores)
    return _binned(scores, targets.astype(float))


def ece_challenge(targets: np.ndarray, scores: np.ndarray) -> float:
    """The variant whose size fits the challenge's table (by simulation): |accuracy at 0.5 - mean p| in bins of p."""
    targets, scores = _known(targets, scores)
    return _binned(scores, ((scores >= 0.5) == targets).astype(float))


def _positives(targets: np.ndarray, scores: np.ndarray) -> float:
    return float((targets == 1).sum())


METRICS: dict[str, Metric] = {
    "ap": average_precision,
    "auroc": auroc,
    "f1": f1,
    "fnr": fnr,
    "ece": ece,
    "ece_challenge": ece_challenge,
    "positives": _positives,
}


def per_finding(
    targets: np.ndarray, scores: np.ndarray, which: Sequence[str] = tuple(METRICS)
) -> dict[str, np.ndarray]:
    """Each metric of `which` as float64 [C]. Raises ValueError where shapes differ or a score is not finite."""
    targets, scores = np.asarray(targets), np.asarray(scores, np.float64)
    if targets.shape != scores.shape or targets.ndim != 2:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape} must both be [images, findings]")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    columns = range(targets.shape[1])
    return {name: np.array([METRICS[name](targets[:, c], scores[:, c]) for c in columns]) for name in which}


def macro(values: np.ndarray) -> float:
    """The mean over findings that have a value; nan where none has."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else float("nan")


def means(values: np.ndarray) -> np.ndarray:
    """The macro mean [..., R] of values [..., C, R], over the findings that have one; nan where none has."""
    known = ~np.isnan(values)
    counts = known.sum(axis=-2)
    return np.where(known, values, 0).sum(axis=-2) / np.where(counts, counts, np.nan)


def micro_f1(targets: np.ndarray, scores: np.ndarray) -> float:
    """F1 at 0.5 over all labelled entries together; nan without positives."""
    return f1(np.asarray(targets).ravel(), np.asarray(scores).ravel())


def by_rarity(values: np.ndarray, rarity: Sequence[str]) -> dict[str, float]:
    """The macro mean of head, medium and tail findings; `rarity` [C] as tasks.rarity gives it."""
    kinds = np.asarray(rarity)
    return {kind: macro(np.asarray(values)[kinds == kind]) for kind in ("head", "medium", "tail")}


def bootstrap_map(
    targets: np.ndarray,
    systems: Sequence[np.ndarray] | np.ndarray,
    groups: np.ndarray,
    rounds: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Macro mAP float64 [S, rounds] of S systems' scores [N, C] when whole groups are drawn with replacement.

    All systems see the same draws, so differences of rows are paired. A finding without a positive in a
    draw is left out of that draw's mean (Efron & Tibshirani 1993, ch. 6, by clusters).
    """
    return bootstrap(targets, systems, groups, rounds, seed)["ap"]


def bootstrap(
    targets: np.ndarray,
    systems: Sequence[np.ndarray] | np.ndarray,
    groups: np.ndarray,
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Macro mAP ("ap") and macro AUROC ("auroc") of the same draws, as `bootstrap_map`; both come of one pass."""
    result = np.empty((2, len(systems), rounds))
    for s, values in enumerate(_resampled(targets, systems, groups, rounds, seed)):
        result[:, s] = means(values)
    return dict(zip(("ap", "auroc"), result, strict=True))


def bootstrap_scores(
    targets: np.ndarray, scores: np.ndarray, groups: np.ndarray, rounds: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Every score of one system in the draws of `bootstrap_map`.

    ap, auroc, f1, fnr: [C, rounds]; micro_f1, micro_fnr: [rounds]; nan in a draw where there is no such score.
    """
    subject = numbered(groups)
    drawn = draws(subject.max() + 1, rounds, seed)
    ap, auroc = next(drawn_scores(targets, [scores], subject, drawn, rounds))
    positive, predicted, known = targets == 1, scores >= 0.5, targets >= 0
    kinds = (positive & predicted, positive & ~predicted, known & ~positive & predicted)
    by_subject = np.zeros((len(kinds), subject.max() + 1, targets.shape[1]))
    for kind, counts in zip(kinds, by_subject, strict=True):
        np.add.at(counts, subject, kind)
    blocks = [block.T @ by_subject for block in drawn]  # each [3, LANES, C]
    hit, missed, false = np.concatenate(blocks, axis=1)[:, :rounds].transpose(0, 2, 1)
    rates = {"ap": ap, "auroc": auroc, "f1": _f1_of(hit, missed, false), "fnr": _fnr_of(hit, missed)}
    hit, missed, false = (counts.sum(axis=0) for counts in (hit, missed, false))
    return {**rates, "micro_f1": _f1_of(hit, missed, false), "micro_fnr": _fnr_of(hit, missed)}


def _f1_of(hit: np.ndarray, missed: np.ndarray, false: np.ndarray) -> np.ndarray:
    return np.where(hit + missed > 0, 2 * hit / np.maximum(2 * hit + missed + false, 1), np.nan)


def _fnr_of(hit: np.ndarray, missed: np.ndarray) -> np.ndarray:
    return np.where(hit + missed > 0, missed / np.maximum(hit + missed, 1), np.nan)


def bootstrap_ap(
    targets: np.ndarray,
    systems: Sequence[np.ndarray] | np.ndarray,
    groups: np.ndarray,
    rounds: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """AP float64 [S, C, rounds] of every finding in the draws of `bootstrap_map`; nan in a draw without positives."""
    return np.array([values[0] for values in _resampled(targets, systems, groups, rounds, seed)])


def positive_subjects(targets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """How many subjects have a positive image, int64 [C]; targets [N, C], groups [N]."""
    subject = numbered(groups)
    return np.array([len(np.unique(subject[column == 1])) for column in np.asarray(targets).T], np.int64)


def numbered(groups: np.ndarray) -> np.ndarray:
    """The subject of each image as a number from 0, int64 [N], in the order of their names."""
    return np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]


def chance(targets: np.ndarray) -> float:
    """The macro mAP of constant predictions: the mean prevalence of findings with positives; nan without any."""
    positives, labelled = (targets == 1).sum(axis=0), (targets >= 0).sum(axis=0)
    scored = positives > 0
    return float((positives[scored] / labelled[scored]).mean()) if scored.any() else float("nan")


def population_ap(targets: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """AP of one finding that many images would give, estimated from few: targets, scores and subjects [N].

    A positive counts itself in the precision at its own score, which lifts the AP of few positives. Here precision at a
    positive is counted over the other subjects' images, with prevalence kept: without itself it is an unbiased estimate
    for all positives but the first, above whom there is nobody. That one gets the mean of 1 and the precision at
    the next image. nan below 2 positive subjects. benchmarks/intervals.py measures what bias is left.
    """
    return _population_ap(targets, scores, numbered(groups))


def population_map(targets: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """The macro mean of `population_ap` over findings with 2 positive subjects or more; targets, scores [N, C]."""
    columns, subject = zip(np.asarray(targets).T, np.asarray(scores).T, strict=True), numbered(groups)
    return macro(np.array([_population_ap(*column, subject) for column in columns]))


def _population_ap(targets: np.ndarray, scores: np.ndarray, subject: np.ndarray) -> float:
    """`population_ap` of subjects by number [N]."""
    positive, scores = _known(targets, scores)
    subject = subject[np.asarray(targets) >= 0]
    if len(np.unique(subject[positive])) < 2:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    positive, scores, subject = positive[order], scores[order], subject[order]
    ends = _tie_ends(np.diff(scores) != 0)
    own_true, own_seen = _own_counts(positive, scores, subject)
    true, seen = np.cumsum(positive)[ends] - own_true, ends + 1 - own_seen
    first = positive & (seen == 0)
    if first.any():
        top = subject[0]
        after = ends[np.argmax(subject != top)]  # the first threshold that another subject reaches
        others = subject[: after + 1] != top
        true[first], seen[first] = positive[: after + 1][others].sum(), others.sum()
    positives, size = np.bincount(subject, positive)[subject], np.bincount(subject)[subject]
    total, negatives = positive.sum(), len(positive) - positive.sum()
    hits = true * total / (total - positives)
    alarms = (seen - true) * negatives / np.maximum(negatives - (size - positives), 1)
    precision = (hits / np.maximum(hits + alarms, 1e-300))[positive]
    return float(np.where(first[positive], (precision + 1) / 2, precision).mean())


def _known(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labelled rows: positive bool, scores float64."""
    targets, scores = np.asarray(targets), np.asarray(scores, np.float64)
    rows = targets >= 0
    return targets[rows] == 1, scores[rows]


def _counts(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives at every distinct threshold, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    true = np.cumsum(positive[order])[ends]
    return true, ends + 1 - true


def _tie_ends(apart: np.ndarray) -> np.ndarray:
    """For each of N sorted values the index of the last one equal to it; apart [N - 1]: whether neighbours differ."""
    last = np.flatnonzero(np.r_[apart, True])
    return np.repeat(last, np.diff(last, prepend=-1))


def _own_counts(positive: np.ndarray, scores: np.ndarray, subject: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each image its subject's positives and images of at least its score; sorted by score, the highest first."""
    order = np.argsort(subject, kind="stable")
    s, true = subject[order], np.cumsum(positive[order])
    starts = np.r_[0, np.flatnonzero(np.diff(s)) + 1]
    start = np.repeat(starts, np.diff(starts, append=len(s)))
    ends = _tie_ends((np.diff(s) != 0) | (np.diff(scores[order]) != 0))
    own = np.empty((2, len(s)), np.int64)
    own[:, order] = true[ends] - true[start] + positive[order][start], ends - start + 1
    return own[0], own[1]


def _binned(scores: np.ndarray, outcome: np.ndarray) -> float:
    if not len(scores):
        return float("nan")
    bins = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    gap = np.bincount(bins, scores, BINS) - np.bincount(bins, outcome, BINS)
    return float(np.abs(gap).sum() / len(scores))


def _resampled(
    targets: np.ndarray, systems: Sequence[np.ndarray] | np.ndarray, groups: np.ndarray, rounds: int, seed: int
) -> Iterator[np.ndarray]:
    """Of each system AP and AUROC [2, C, rounds] of every finding in every draw."""
    subject = numbered(groups)
    return drawn_scores(targets, systems, subject, draws(subject.max() + 1, rounds, seed), rounds)


def reweighted(
    targets: np.ndarray, systems: Sequence[np.ndarray] | np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> Iterator[np.ndarray]:
    """Of each system AP and AUROC [2, C, R] of every finding where subjects count by `weights`.

    weights: whole numbers up to 65,535, [R, subjects], the subjects in the order of np.unique; those of all images
    together below 2 ** 31.
    """
    padded = np.zeros((-(-len(weights) // LANES) * LANES, weights.shape[1]), np.uint16)
    padded[: len(weights)] = weights
    blocks = [np.ascontiguousarray(block.T) for block in np.split(padded, len(padded) // LANES)]
    return drawn_scores(targets, systems, numbered(groups), blocks, len(weights))


def drawn_scores(
    targets: np.ndarray,
    systems: Sequence[np.ndarray] | np.ndarray,
    group: np.ndarray,
    blocks: list[np.ndarray],
    rounds: int,
) -> Iterator[np.ndarray]:
    """`reweighted` by blocks of weights, each uint16 [groups, LANES], such as `draws`; group: [N] indices."""
    count = _compiled()
    with ThreadPoolExecutor(available_processors()) as threads:  # the loop is compiled and frees the interpreter's lock
        for scores in systems:
            ordered = functools.partial(sorted_images, group=group)
            columns = list(threads.map(ordered, targets.T, np.asarray(scores).T))
            values = np.array(
                [list(threads.map(functools.partial(count, *column), blocks)) for column in columns]
            )  # [C, blocks, 2, LANES]
            yield values.transpose(2, 0, 1, 3).reshape(2, len(columns), -1)[:, :, :rounds]


@functools.lru_cache(maxsize=1)  # figures of one set of images share them; nobody changes them
def draws(groups: int, rounds: int, seed: int) -> list[np.ndarray]:
    """How often each group is drawn: uint16 [groups, LANES] for every LANES rounds; past the last none is."""
    rng = np.random.default_rng(seed)
    blocks = [np.zeros((groups, LANES), np.uint16) for _ in range(0, rounds, LANES)]
    for r in range(rounds):
        blocks[r // LANES][:, r % LANES] = np.bincount(rng.integers(0, groups, groups), minlength=groups)
    return blocks


def sorted_images(
    targets: np.ndarray, scores: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labelled images from the highest score down: positive, last of its tie, group."""
    rows = np.flatnonzero(targets >= 0)
    order = rows[np.argsort(-scores[rows])]  # how ties stand does not matter
    return targets[order] == 1, np.diff(scores[order], append=np.nan) != 0, group[order].astype(np.int32)


@functools.cache
def _compiled() -> Any:
    """The count of LANES rounds; numba is imported only where it is wanted."""
    from cxrlt_ray.evaluation.compiled import njit

    @njit(cache=True, nogil=True, error_model="numpy")
    def resampled(positive, last, group, drawn):  # type: ignore[no-untyped-def]
        """AP and AUROC [2, LANES] of one finding whose images stand from the highest score down."""
        seen, true = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
        seen_before, true_before = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)  # the tie began
        precision, above = np.zeros(LANES), np.zeros(LANES)
        first, counts = True, False
        for n in range(positive.size):
            if first and (positive[n] or not last[n]):
                seen_before[:] = seen
            row = drawn[np.uint64(group[n])]
            for k in range(LANES):  # of one type throughout: else it is not vectorised
                seen[k] += np.int32(row[k])
            if positive[n]:
                counts = True
                for k in range(LANES):
                    true[k] += np.int32(row[k])
            if last[n] and counts:  # a threshold below which there are more positives
                for k in range(LANES):
                    more = true[k] - true_before[k]
                    false, false_before = seen[k] - true[k], seen_before[k] - true_before[k]
                    precision[k] += more * (true[k] / max(seen[k], np.int32(1)))
                    above[k] += more * (false_before + false) / 2
                    true_before[k] = true[k]
                counts = False
            first = last[n]
        result = np.full((2, LANES), np.nan)
        for k in range(LANES):
            false = seen[k] - true[k]
            if true[k]:
                result[0, k] = precision[k] / true[k]
            if true[k] and false:
                result[1, k] = 1 - above[k] / true[k] / false
        return result

    return resampled
