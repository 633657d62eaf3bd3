"""Greedy selection on exact average precision: for each finding by itself, or for all together on macro mAP.

It equals the plain loop over scikit-learn's average_precision_score, ties included; kernels.py says why it is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.typed import List

from cxrlt_ray.selection import kernels, progress
from cxrlt_ray.selection.finding import Finding, prepare
from cxrlt_ray.selection.kernels import SLACK, foremost
from cxrlt_ray.selection.threads import by_work, for_each, in_shares

AT_ONCE = 8  # findings whose bounds are tightened before candidates are dropped


def greedy_each(predictions: np.ndarray, targets: np.ndarray, rounds: int, bags: np.ndarray) -> np.ndarray:
    """How often each member is chosen, float64 [B, M, C], for each finding by itself; 0 without a positive.

    predictions: float32 [M, N, C]. targets: int8 [N, C], 1, 0 or -1 (not labelled). rounds: members added, with
    replacement; the shortest prefix of the highest AP counts. bags: int [B, M], one selection each: 0 for a member
    left out, else its rank among equals, the lowest first.
    """
    bags = bags.astype(np.int64)
    counts = np.zeros((*bags.shape, targets.shape[1]))

    def one(c: int) -> None:
        counts[:, :, c] = kernels.select(prepare(predictions, targets, c), bags, rounds)

    for_each(one, by_work(targets), predictions.size, progress.step)
    return counts


def greedy_together(
    predictions: np.ndarray, targets: np.ndarray, rounds: int, bags: np.ndarray, logs: bool = False
) -> np.ndarray:
    """As greedy_each, float64 [B, M], of one ensemble for all findings, chosen on macro mAP.

    logs: on the mean logarithm of AP, whose bounds are those of AP: it rises with it.
    """
    scored, size = by_work(targets), predictions.size
    if not scored:
        return (bags > 0).astype(float)
    prepared: list[Any] = [None] * len(scored)

    def fill(k: int) -> None:
        prepared[k] = prepare(predictions, targets, scored[k])

    for_each(fill, range(len(scored)), size)
    findings, every, counts = List(prepared), np.arange(len(scored)), np.zeros(bags.shape)
    picked, reached = np.empty(rounds, np.int64), np.empty(rounds)
    mean = _mean_log if logs else _mean
    for bag, ranks in enumerate(bags.astype(np.int64)):
        in_shares(kernels.reset_some, findings, every, size)
        for turn in range(rounds):
            in_shares(kernels.begin_some, findings, every, size)
            picked[turn], reached[turn] = _best_together(findings, ranks, size, mean)
            in_shares(kernels.take_some, findings, every, size, picked[turn])
            progress.step((bag * rounds + turn + 1) / (len(bags) * rounds))
        last = foremost(reached, np.zeros(rounds))
        counts[bag] = np.bincount(picked[: last + 1], minlength=bags.shape[1])
    return counts


def _mean(ap: np.ndarray) -> np.ndarray:
    """Over findings: float64 [K, M] to [M]."""
    return ap.mean(axis=0)


def _mean_log(ap: np.ndarray) -> np.ndarray:
    """As _mean, of logarithms; a bag's other members, with an AP of -inf, keep it."""
    return np.log(np.maximum(ap, 0), out=np.full_like(ap, -np.inf), where=ap > 0).mean(axis=0)


def _best_together(
    findings: List[Finding], ranks: np.ndarray, size: int, mean: Callable[[np.ndarray], np.ndarray]
) -> tuple[int, float]:
    """The member of a bag that has the highest `mean` of AP with the running sums; and that mean."""
    ap = np.full((len(findings), len(ranks)), -np.inf)  # upper bounds, exact in the end
    every = np.arange(len(findings))
    in_shares(kernels.judge_some, findings, every, size, np.flatnonzero(ranks), 0, ap)
    bound, exact = mean(ap), np.zeros(len(ranks), bool)
    first = bound.argmax()
    loose = ap[:, first].copy()
    in_shares(kernels.judge_some, findings, every, size, np.array([first]), 2, ap)
    bound[first] = best = float(mean(ap[:, [first]])[0])
    exact[first] = True
    loosest = np.argsort(ap[:, first] - loose, kind="stable")  # where bounds tighten most: these may be enough
    for stage in (1, 2):
        able = np.flatnonzero((bound >= best - SLACK) & ~exact)
        for start in range(0, len(loosest), AT_ONCE):
            if not able.size:
                break
            in_shares(kernels.judge_some, findings, loosest[start : start + AT_ONCE], size, able, stage, ap)
            bound[able] = mean(ap[:, able])
            able = able[bound[able] >= best - SLACK]
        if stage == 2:
            exact[able] = True
    value = np.where(exact, bound, -np.inf)
    chosen = int(foremost(value, ranks))
    return chosen, float(value[chosen])
