"""Selector greedy_lift against a plain loop over scikit-learn's average precision."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score

from cxrlt_ray.selection import SELECTORS


def drawn(seed, members=6, images=120, shares=(0.4, 0.15, 0.05)):
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, len(shares))) < shares).astype(np.int8)
    targets[:2] = [1] * len(shares)
    signal = rng.random((members, 1, len(shares))) * targets
    return (rng.random((members, images, len(shares))) + 0.8 * signal).astype(np.float32), targets


def by_hand(scores, targets, rounds):
    """Greedy selection with replacement on the mean log AP, the shortest best prefix."""
    total, picked, reached = np.zeros(targets.shape), [], []
    for turn in range(rounds):
        values = [
            np.mean(
                [
                    np.log(average_precision_score(targets[:, c], (total[:, c] + member[:, c]) / (turn + 1)))
                    for c in range(targets.shape[1])
                ]
            )
            for member in scores.astype(float)
        ]
        best = int(np.flatnonzero(np.array(values) >= max(values) - 1e-12)[0])
        total += scores[best]
        picked.append(best)
        reached.append(values[best])
    last = int(np.flatnonzero(np.array(reached) >= max(reached) - 1e-12)[0])
    counts = np.bincount(picked[: last + 1], minlength=len(scores))
    return counts / counts.sum()


def test_it_is_the_plain_loop():
    for seed in range(5):
        scores, targets = drawn(seed)
        weights = SELECTORS["greedy_lift"](scores, targets, np.arange(len(targets)), rounds=8)
        assert np.allclose(weights, by_hand(scores, targets, 8)[:, None])


def test_a_rare_finding_counts_as_much_as_a_frequent_one():
    """On plain AP the member that is good at the frequent finding wins; on its logarithm the other."""
    rng = np.random.default_rng(1)
    targets = (rng.random((4000, 2)) < (0.5, 0.005)).astype(np.int8)
    noise = rng.random((2, 4000, 2)).astype(np.float32)
    frequent, rare = noise[0].copy(), noise[1].copy()
    frequent[:, 0] += 0.6 * targets[:, 0]
    rare[:, 1] += 0.3 * targets[:, 1]
    scores, groups = np.stack([frequent, rare]), np.arange(4000)
    assert SELECTORS["greedy_lift"](scores, targets, groups, rounds=1)[1, 0] == 1
    assert SELECTORS["greedy_global"](scores, targets, groups, rounds=1)[0, 0] == 1


def test_a_finding_without_labels_has_the_weights_of_the_others():
    scores, targets = drawn(3)
    hidden = targets.copy()
    hidden[:, 2] = -1
    weights = SELECTORS["greedy_lift"](scores, hidden, np.arange(len(targets)), rounds=8)
    assert np.allclose(weights[:, [0]], weights)
    assert np.allclose(weights[:, 0], by_hand(scores[:, :, :2], targets[:, :2], 8))
