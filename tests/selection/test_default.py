"""The default ensemble on data that tells little: no traceback, no member in front without reason, no false promise."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from cxrlt_ray.ensembling.compare import CROSS_FITTED, compare, judge
from cxrlt_ray.ensembling.ensemble_file import load_ensemble
from cxrlt_ray.ensembling.pool import Pool
from cxrlt_ray.selection.honest import fit

FILE = load_ensemble("greedy")[1]
FINDINGS = ("Mass", "Nodule", "Hernia")


def cohort(skills, images=300, prevalence=(0.3, 0.15, 0.08), each=2, seed=0):
    """Members [M, N, 3] whose scores tell `skills` [M] of the labels; `each` images a subject."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, len(prevalence))) < prevalence).astype(np.int8)
    noise = rng.normal(size=(len(skills), *targets.shape))
    scores = np.asarray(skills, float)[:, None, None] * targets + noise + rng.normal(size=targets.shape)
    return (1 / (1 + np.exp(-scores))).astype(np.float32), targets, np.arange(images) // each


def weights_of(predictions, targets, groups, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = fit(FILE.methods(), predictions, targets, groups, margin=FILE.margin(), **options).weights
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert weights.sum(axis=0) == pytest.approx(np.ones(targets.shape[1]))
    return weights


def test_a_finding_with_one_positive_subject_takes_what_the_others_lean_on():
    predictions, targets, groups = cohort([2.0, 2.0, 2.0])
    for image in range(0, 60, 4):  # whichever subject it is, its luck puts no member above the others
        targets[:, 2] = 0
        targets[image, 2] = 1
        assert weights_of(predictions, targets, groups)[:, 2] == pytest.approx(np.full(3, 1 / 3))


def test_members_that_are_equal_get_equal_weights():
    predictions, targets, groups = cohort([1.0])
    weights = weights_of(np.repeat(predictions, 4, axis=0), targets, groups)
    assert weights == pytest.approx(np.full((4, 3), 0.25))


def test_one_member_gets_all():
    assert (weights_of(*cohort([1.0])) == 1).all()


def test_a_subject_that_owns_half_of_the_images_does_not_decide_alone():
    predictions, targets, groups = cohort([1.0, 1.0, 1.0])
    groups[:150] = 0
    weights_of(predictions, targets, groups)


def test_labels_with_nulls_and_constant_scores():
    predictions, targets, groups = cohort([1.0, 1.0, 0.0])
    targets[::3, 0] = -1
    targets[:, 1] = -1
    predictions[2] = 0.5
    weights_of(predictions, targets, groups)
    weights_of(np.full_like(predictions, 0.3), targets, groups)


def test_of_many_members_that_are_noise_the_good_ones_get_the_weight():
    predictions, targets, groups = cohort([2.0] * 10 + [0.0] * 190, images=600)
    weights = weights_of(predictions, targets, groups)
    assert weights[:10].sum(axis=0).min() > 0.8


def test_a_broken_member_is_dropped():
    predictions, targets, groups = cohort([1.5] * 6 + [0.0], images=600)
    assert weights_of(predictions, targets, groups)[6].max() < 0.02


def test_where_little_is_known_no_interval_is_promised():
    predictions, targets, groups = cohort([1.0, 1.0], images=40, prevalence=(0.05, 0.05, 0.05), seed=1)
    pool = Pool(["a", "b"], np.arange(40).astype(str), predictions, targets, groups, trials=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        systems = compare(FILE, "greedy", pool, seed=0, say=lambda _: None)
        scored = judge(FINDINGS, ("tail",) * 3, pool, systems, {}, rounds=50, seed=0).sets[CROSS_FITTED]
    few = min((targets == 1).sum() - (targets == 1).any(axis=0).sum(), 19) < 4
    assert all(score.map.known != few for score in scored.systems.values())
    assert all(gain.known != few for gain in scored.gains.values())
