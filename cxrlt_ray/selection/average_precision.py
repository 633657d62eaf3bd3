"""Average precision of many members or of one system, exactly as scikit-learn defines it; and weighted means."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.evaluation.compiled import njit
from cxrlt_ray.selection.finding import prepare
from cxrlt_ray.selection.kernels import COMPILED, EQUAL, average_precision, judge_all
from cxrlt_ray.selection.threads import by_work, for_each

__all__ = ["EQUAL", "average_precision", "precision", "precisions", "weighted_mean"]


def precisions(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AP float64 [M, C] of every member for every finding; nan where a finding has no positive.

    predictions: float32 [M, N, C]. targets: int8 [N, C], 1, 0 or -1 (not labelled).
    """
    ap = np.full((predictions.shape[0], predictions.shape[2]), np.nan)

    def one(c: int) -> None:
        finding, out = prepare(predictions, targets, c), np.empty(len(predictions))
        finding.total_pos[:], finding.total_neg[:] = 0, 0
        judge_all(finding, np.arange(len(predictions)), 2, out)
        ap[:, c] = out

    for_each(one, by_work(targets), predictions.size)
    return ap


def precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AP float64 [C] of one system's scores float64 [N, C]; nan where a finding has no positive."""
    ap = np.full(scores.shape[1], np.nan)

    def one(c: int) -> None:
        known = np.flatnonzero(targets[:, c] >= 0)
        ap[c] = average_precision(scores[known, c], targets[known, c] == 1)

    for_each(one, by_work(targets), scores.size)
    return ap


@njit(**COMPILED)
def _add_weighted(scores, weights, rows, out):  # type: ignore[no-untyped-def]
    for m in range(weights.size):
        if weights[m] > 0:
            for n in range(rows.size):
                out[n] += scores[m, rows[n]] * weights[m]


def weighted_mean(predictions: np.ndarray, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Weighted mean over members, float64 [n, C] of some rows of predictions [M, N, C] by weights [M, C].

    Fast where a finding's scores lie together (honest.side_by_side).
    """
    out = np.zeros((weights.shape[1], rows.size))

    def one(c: int) -> None:
        _add_weighted(predictions[:, :, c], weights[:, c], rows, out[c])

    for_each(one, range(len(out)), out.size * len(predictions))
    return out.T
