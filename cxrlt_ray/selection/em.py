"""Weights of a linear pool of predictors by maximum likelihood; compiled.

The update of Cover (1984, An algorithm for maximizing expected log investment return, IEEE Trans. Inf.
Theory 30): EM for a mixture of known densities. It never lowers the likelihood, its gains bound what can still be
gained, and it is slow; so its steps are stretched as long as the likelihood keeps rising (Salakhutdinov
& Roweis 2003, Adaptive overrelaxed bound optimization).
"""

from __future__ import annotations

import numpy as np
from numba import prange

from cxrlt_ray.evaluation.compiled import njit

BLOCK = 4096  # images whose pool stays in the cache while all members pass
GAP = 1e-6  # nats an image from the optimum at which to stop
LEAST = 1e-4  # a weight below, as a share of the largest, is not worth its member
_RARE = 1e-200  # likelihood of a label that a member gives probability 0


def _pass(values, targets, weights, low, scale):  # type: ignore[no-untyped-def]
    """Sums over labelled images [M + 1]: each member's likelihood to the pool's, last the log of the pool's."""
    members, images = values.shape
    blocks = (images + BLOCK - 1) // BLOCK
    sums = np.zeros((blocks, members + 1))
    for b in prange(blocks):
        start, stop = b * BLOCK, min(images, (b + 1) * BLOCK)
        base, sign, pool = np.empty(stop - start), np.empty(stop - start), np.zeros(stop - start)
        for j in range(stop - start):  # the likelihood is base + sign * value: no branch below
            positive = targets[start + j] == 1
            base[j] = -low * scale if positive else 1 + low * scale
            sign[j] = scale if positive else -scale
        for m in range(members):
            for j in range(stop - start):
                pool[j] += weights[m] * max(base[j] + sign[j] * values[m, start + j], _RARE)
        for j in range(stop - start):
            labelled = targets[start + j] >= 0
            sums[b, members] += np.log(pool[j]) if labelled else 0.0
            pool[j] = 1 / pool[j] if labelled else 0.0
        for m in range(members):
            total = 0.0
            for j in range(stop - start):
                total += pool[j] * max(base[j] + sign[j] * values[m, start + j], _RARE)
            sums[b, m] = total
    return sums.sum(axis=0)


_in_turn = njit(cache=True, nogil=True)(_pass)
_in_parallel = njit(cache=True, nogil=True, parallel=True)(_pass)


def pool_weights(values: np.ndarray, targets: np.ndarray, steps: int) -> np.ndarray:
    """Weights float64 [M], sum 1, of the pool sum_m w_m p_m of least log loss, from equal weights.

    values: float32 [M, n], targets: int8 [n]. Values outside [0, 1] are first mapped onto it, all members
    by the same map, which keeps the pool's order. At most `steps` updates w_m <- w_m mean_j p_mj(y_j) / pool_j(y_j).
    """
    labelled = targets >= 0
    low = float(values.min(where=labelled, initial=0.0))
    high = float(values.max(where=labelled, initial=1.0))
    run = _in_turn if values.size < 5_000_000 else _in_parallel  # waking threads costs up to 3 ms

    def measure(weights: np.ndarray) -> tuple[np.ndarray, float]:
        means = run(values, targets, weights, low, 1 / (high - low)) / labelled.sum()
        return np.log(means[:-1]), means[-1]

    weights, stretch = np.full(len(values), 1 / len(values)), 1.0
    gains, reached = measure(weights)
    for _ in range(steps):
        if gains.max() <= GAP:  # Cover's bound on the likelihood still to be gained
            break
        tried = _normal(np.log(weights) + stretch * gains)
        tried_gains, likelihood = measure(tried)
        if likelihood >= reached:
            weights, gains, reached = tried, tried_gains, likelihood
            stretch *= 2
        elif stretch == 1:  # rounding
            break
        else:
            stretch = 1.0
    sparse = np.where(weights < LEAST * weights.max(), 0, weights)
    sparse /= sparse.sum()
    return sparse if measure(sparse)[1] >= reached - GAP else weights


def _normal(logs: np.ndarray) -> np.ndarray:
    weights = np.maximum(np.exp(logs - logs.max()), 1e-15)  # never 0: a stretched step must not be final
    return weights / weights.sum()
