"""Greedy selection is the plain loop over scikit-learn, whatever the scale, the ties, the size and the threads."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from cxrlt_ray.selection import exact, greedy, kernels
from cxrlt_ray.selection.average_precision import precisions
from cxrlt_ray.selection.finding import prepare

SCALES = {
    "probabilities": lambda r, shape: r.random(shape),
    "two values": lambda r, shape: r.integers(0, 2, shape),
    "few values": lambda r, shape: r.integers(0, 5, shape) / 4,
    "float16": lambda r, shape: r.random(shape).astype(np.float16),
    "logits": lambda r, shape: r.normal(0, 8, shape),
    "denormals": lambda r, shape: r.integers(0, 9, shape) * 1e-44,
    "huge": lambda r, shape: r.normal(0, 1, shape) * 1e37,
    "far from zero": lambda r, shape: 1e6 + r.integers(0, 9, shape) / 8,
    "one outlier": lambda r, shape: np.where(r.random(shape) < 0.01, 1e20, r.random(shape)),
    "all equal": lambda r, shape: np.full(shape, 0.25),
    "rare": lambda r, shape: r.random(shape) ** 12,
}


def cohort(scale, seed, members, images, positives):
    """Scores float32 [M, N, 1] of one scale that tell something of the labels int8 [N, 1]."""
    rng = np.random.default_rng(seed)
    targets = np.zeros((images, 1), np.int8)
    targets[rng.choice(images, positives, replace=False)] = 1
    scores = SCALES[scale](rng, (members, images, 1)).astype(np.float32)
    better = np.sort(scores, axis=1)[:, -positives:]  # for half the positives, one of the highest scores
    rows = np.flatnonzero(targets[:, 0] == 1)
    swapped = rng.random((members, positives)) < rng.uniform(0, 0.6, members)[:, None]
    scores[:, rows, 0] = np.where(swapped, better[..., 0], scores[:, rows, 0])
    return scores, targets


def plain_loop(scores, targets, rounds):
    """Caruana's greedy over scikit-learn, for all findings of `scores` together: counts [M] of the best prefix."""
    total, picked, reached = np.zeros(scores.shape[1:]), [], []
    for _ in range(rounds):
        sums = total + scores.astype(np.float64)
        values = np.array(
            [np.mean([average_precision_score(t, s) for t, s in zip(targets.T, each.T, strict=True)]) for each in sums]
        )
        picked.append(int(np.flatnonzero(values >= values.max() - 1e-12)[0]))
        reached.append(values[picked[-1]])
        total = sums[picked[-1]]
    best = int(np.flatnonzero(np.array(reached) >= max(reached) - 1e-12)[0])
    return np.bincount(picked[: best + 1], minlength=len(scores)) / (best + 1)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(SCALES)),
    st.integers(0, 2**31),
    st.integers(1, 5),
    st.integers(2, 60),
    st.floats(0, 1),
)
def test_small_cases_of_every_scale_equal_the_plain_loop(scale, seed, members, images, share):
    scores, targets = cohort(scale, seed, members, images, 1 + int(share * (images - 1)))
    counts = exact.greedy_each(scores, targets, 6, np.ones((1, members), bool))[0, :, 0]
    assert np.array_equal(counts / counts.sum(), plain_loop(scores, targets, 6))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("positives", [3, 40, 900])
def test_large_cases_of_every_scale_equal_the_plain_loop(scale, positives):
    scores, targets = cohort(scale, 1, 4, 9000, positives)  # large enough for all bounds, and few enough positives
    counts = exact.greedy_each(scores, targets, 8, np.ones((1, 4), bool))[0, :, 0]
    assert np.array_equal(counts / counts.sum(), plain_loop(scores, targets, 8))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SCALES)), st.integers(0, 2**31), st.sampled_from([30, 700, 6000]), st.floats(0.001, 0.4))
def test_bounds_are_never_below_the_exact_ap_and_that_is_scikit_learns(scale, seed, images, share):
    scores, targets = cohort(scale, seed, 4, images, max(1, int(share * images)))
    finding = prepare(scores, targets, 0)
    kernels.reset(finding)
    total = np.zeros(images)
    for turn in range(9):
        kernels.begin(finding)
        for m in range(4):
            coarse, fine, ap = (kernels.judge(finding, m, stage) for stage in range(3))
            assert coarse >= ap - 1e-12
            assert fine >= ap - 1e-12
            assert abs(ap - average_precision_score(targets[:, 0], total + scores[m, :, 0])) < 1e-12
        kernels.take(finding, turn % 4)
        total = total + scores[turn % 4, :, 0]


def test_bounds_are_close_enough_to_spare_the_exact_ap():
    scores, targets = cohort("probabilities", 0, 6, 20_000, 400)
    finding = prepare(scores, targets, 0)
    kernels.reset(finding)
    kernels.begin(finding)
    coarse, fine, ap = (np.array([kernels.judge(finding, m, stage) for m in range(6)]) for stage in range(3))
    assert (fine - ap).max() < 5e-3
    assert (coarse - ap).max() < 0.05
    assert finding.hard < 10_000


@pytest.mark.parametrize("scale", ["probabilities", "few values", "logits", "rare"])
def test_together_equals_the_plain_loop_on_macro_map(scale):
    parts = [cohort(scale, seed, 4, 300, 20 * seed + 5) for seed in range(3)]
    scores, targets = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
    counts = exact.greedy_together(scores, targets, 7, np.ones((1, 4), bool))[0]
    assert np.array_equal(counts / counts.sum(), plain_loop(scores, targets, 7))


def test_a_bag_is_greedy_among_its_members():
    scores, targets = cohort("few values", 3, 6, 400, 60)
    bags = np.array([[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]], bool)
    each = exact.greedy_each(scores, targets, 9, bags)[:, :, 0]
    together = exact.greedy_together(scores, targets, 9, bags)
    for b, bag in enumerate(bags):
        alone = exact.greedy_each(scores[bag], targets, 9, np.ones((1, bag.sum()), bool))[0, :, 0]
        assert np.array_equal(each[b, bag], alone)
        assert np.array_equal(together[b, bag], alone)
        assert not each[b, ~bag].any()


def test_images_without_a_label_are_as_if_they_were_not_there():
    scores, targets = cohort("few values", 5, 4, 500, 50)
    known = np.random.default_rng(0).random(500) < 0.7
    masked = np.where(known[:, None], targets, np.int8(-1))
    bags = np.ones((1, 4), bool)
    assert np.array_equal(
        exact.greedy_each(scores, masked, 9, bags), exact.greedy_each(scores[:, known], targets[known], 9, bags)
    )


def test_precisions_are_scikit_learns_and_nan_without_positives():
    scores, targets = cohort("float16", 2, 3, 200, 30)
    ap = precisions(np.concatenate([scores, scores], axis=2), np.concatenate([targets, 0 * targets], axis=1))
    expected = [average_precision_score(targets[:, 0], each[:, 0]) for each in scores]
    assert np.allclose(ap[:, 0], expected, atol=1e-12, rtol=0)
    assert np.isnan(ap[:, 1]).all()


def test_threads_change_nothing():
    code = (
        "import numpy as np; from cxrlt_ray.selection import greedy; r = np.random.default_rng(0);"
        "s = np.round(r.random((6, 9000, 12)), 2).astype('f'); t = (r.random((9000, 12)) < .03).astype('i1');"
        "w = [greedy(s, t, np.arange(9000), rounds=6, together=both) for both in (False, True)];"
        "print([each.tolist() for each in w])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"NUMBA_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in (1, 2)
    }
    assert len(printed) == 1


def test_the_members_memory_is_not_copied():
    scores, targets = cohort("probabilities", 0, 3, 300, 30)
    scores.setflags(write=False)
    assert np.allclose(greedy(scores, targets, np.arange(300), rounds=5).sum(axis=0), 1)
