"""Calibration: the references' maps, rankings kept, planted faults mended, what cannot be calibrated left as it is."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.calibration import Calibration, calibrate
from cxrlt_ray.evaluation.calibration_change import calibration_change
from cxrlt_ray.evaluation.calibrators import CALIBRATORS, Cells, LogitMap, mixed
from cxrlt_ray.evaluation.reliability import log_loss

FINDINGS = ("Mass", "Edema", "Hernia")


def cohort(images=1200, prevalences=(0.3, 0.1, 0.02), seed=0):
    """True logits, labels and subjects (two images each); labels follow the logits exactly."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (images, len(prevalences))) + logit(prevalences)
    return logits, (rng.random(logits.shape) < expit(logits)).astype(np.int8), np.arange(images) // 2


def cells(seed=0, images=600):
    logits, targets, _ = cohort(images, (0.25,), seed)
    scores = expit(1.7 * logits[:, 0] + 0.6)
    return scores, targets[:, 0], Cells.of(scores, targets[:, 0] == 1)


def platt_targets(labels):
    positives, negatives = labels.sum(), (1 - labels).sum()
    return np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def soft_logistic(columns, labels):
    """scikit-learn's logistic regression of soft labels: each image twice, weighted."""
    soft, n = platt_targets(labels), len(labels)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(np.vstack([columns, columns]), np.repeat([1, 0], n), sample_weight=np.r_[soft, 1 - soft])
    return model.predict_proba(columns)[:, 1]


def test_platt_is_scikit_learns_sigmoid_calibration():
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Given(LogisticRegression):
        """A classifier whose decision function is its one column."""

        def fit(self, X, y):
            self.classes_, self.n_features_in_ = np.array([0, 1]), 1
            self.coef_, self.intercept_ = np.ones((1, 1)), np.zeros(1)
            return self

    scores, labels, given_cells = cells()
    x = logit(scores)[:, None]
    reference = CalibratedClassifierCV(FrozenEstimator(Given().fit(x, labels)), method="sigmoid").fit(x, labels)
    ours = CALIBRATORS["platt"](given_cells)(scores)
    np.testing.assert_allclose(ours, reference.predict_proba(x)[:, 1], atol=1e-4)


def test_beta_is_logistic_regression_on_both_logarithms():
    scores, labels, given_cells = cells(1)
    reference = soft_logistic(np.column_stack([np.log(scores), -np.log1p(-scores)]), labels)
    np.testing.assert_allclose(CALIBRATORS["beta"](given_cells)(scores), reference, atol=1e-4)


def test_beta_without_a_soft_target_is_near_netcals():
    """Netcal fits to hard labels: of many images the difference is small."""
    from netcal.scaling import BetaCalibration

    logits, targets, _ = cohort(6000, (0.3,), 5)
    scores, labels = expit(1.5 * logits[:, 0] - 0.7), targets[:, 0]
    reference = BetaCalibration().fit(scores, labels).transform(scores).squeeze()
    ours = CALIBRATORS["beta"](Cells.of(scores, labels == 1))(scores)
    assert np.abs(ours - reference).mean() < 0.005


def test_temperature_has_the_least_log_loss_of_all_temperatures():
    scores, labels, given_cells = cells(2)
    fitted = CALIBRATORS["temperature"](given_cells)
    assert fitted.a == fitted.b
    assert fitted.c == 0

    def loss(slope):
        p, soft = expit(slope * logit(scores)), platt_targets(labels)
        return -np.mean(soft * np.log(p) + (1 - soft) * np.log1p(-p))

    assert loss(fitted.a) <= min(loss(fitted.a * factor) for factor in (0.9, 0.99, 1.01, 1.1)) + 1e-12


def test_isotonic_is_scikit_learns_but_for_its_ties_broken_by_the_raw_score():
    scores, labels, given_cells = cells(3)
    reference = IsotonicRegression().fit(scores, platt_targets(labels)).predict(scores)
    ours = CALIBRATORS["isotonic"](given_cells)(scores)
    np.testing.assert_allclose(ours, reference, atol=4e-4)
    assert len(np.unique(reference)) < 60
    assert len(np.unique(ours)) == len(np.unique(scores))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=12, max_size=60),
    st.integers(0, 2**32 - 1),
    st.sampled_from(sorted(CALIBRATORS)),
)
def test_every_method_keeps_the_ranking_of_any_scores(values, seed, method):
    scores = np.array(values)
    labels = np.random.default_rng(seed).random(len(scores)) < 0.4
    labels[:2] = True, False
    fitted = CALIBRATORS[method](Cells.of(scores, labels))
    every = np.unique(np.r_[scores, np.linspace(0, 1, 101), np.float32(1) - np.float32(6e-8), 1e-30])
    mapped = fitted(every)
    assert ((mapped >= 0) & (mapped <= 1)).all()
    assert (np.diff(mapped) > 0).all()


def test_scores_that_rank_the_wrong_way_round_keep_their_ranking_too():
    scores, labels, _ = cells(4)
    for name in ("temperature", "platt", "beta", "isotonic"):
        mapped = CALIBRATORS[name](Cells.of(1 - scores, labels == 1))(np.linspace(0, 1, 50))
        assert (np.diff(mapped) > 0).all(), name


def test_many_images_in_cells_give_nearly_the_map_of_single_images():
    logits, targets, _ = cohort(20_000, (0.1,), 6)
    scores, labels = expit(2 * logits[:, 0] + 1), targets[:, 0]
    reference = soft_logistic(logit(scores)[:, None], labels)
    ours = CALIBRATORS["platt"](Cells.of(scores, labels == 1))(scores)
    inner = np.minimum(scores, 1 - scores) > 1e-6
    np.testing.assert_allclose(ours[inner], reference[inner], atol=2e-4)


def test_a_mixed_map_has_the_mean_of_the_logits():
    scores, labels, given_cells = cells()
    other = Cells.of(scores**2, labels == 1)
    for name in ("platt", "isotonic"):
        own, pooled = CALIBRATORS[name](given_cells), CALIBRATORS[name](other)
        wanted = 0.3 * logit(own(scores)) + 0.7 * logit(pooled(scores))
        np.testing.assert_allclose(logit(mixed(own, pooled, 0.3)(scores)), wanted, atol=1e-9)


@pytest.mark.parametrize("method", sorted(CALIBRATORS))
def test_rank_metrics_are_as_before_on_all_images_and_through_json(method):
    logits, targets, groups = cohort(600)
    scores = expit(3 * logits + 1).astype(np.float32)
    fitted = calibrate(targets, scores, groups, FINDINGS, methods=[method])
    kept = Calibration.model_validate_json(fitted.calibration.model_dump_json())
    assert kept == fitted.calibration
    after = kept.apply(scores, FINDINGS)
    before = metrics.per_finding(targets, scores, ("ap", "auroc"))
    for name, values in metrics.per_finding(targets, after, ("ap", "auroc")).items():
        np.testing.assert_array_equal(values, before[name])


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_miscalibration_is_mended_on_subjects_that_were_not_seen(seed):
    logits, targets, groups = cohort(2000, seed=seed)
    scores = expit(3 * logits + 1)
    fitted = calibrate(targets, scores, groups, FINDINGS, seed=seed)
    change = calibration_change(targets, scores, fitted.calibrated, groups, FINDINGS, rounds=200)
    for measure in ("log_loss", "brier", "ece"):
        assert change.mean.differences[measure].high < 0, measure
    unseen, labels, _ = cohort(4000, seed=seed + 10)
    after = fitted.calibration.apply(expit(3 * unseen + 1), FINDINGS)
    for c in range(3):
        assert log_loss(labels[:, c], after[:, c]) < log_loss(labels[:, c], expit(unseen[:, c])) + 0.005


def test_calibrated_scores_are_not_made_worse():
    logits, targets, groups = cohort(2000, seed=3)
    scores = expit(logits)
    fitted = calibrate(targets, scores, groups, FINDINGS)
    change = calibration_change(targets, scores, fitted.calibrated, groups, FINDINGS, rounds=50)
    assert change.mean.differences["log_loss"].value < 0.001


def test_an_image_is_calibrated_by_a_map_that_did_not_see_its_subject():
    logits, targets, groups = cohort(400, (0.3,))
    scores = expit(3 * logits + 1)
    fitted = calibrate(targets, scores, groups, FINDINGS[:1], methods=["platt"], folds=4)
    for k in range(4):
        seen = fitted.fold != k
        assert not set(groups[seen]) & set(groups[~seen])
        own = CALIBRATORS["platt"](Cells.of(scores[seen, 0], targets[seen, 0] == 1))
        np.testing.assert_allclose(fitted.calibrated[~seen, 0], own(scores[~seen, 0]), atol=1e-12)


def test_a_finding_of_few_positives_leans_on_the_pooled_map_by_its_subjects():
    logits, targets, groups = cohort(1000, (0.3, 0.3, 0.3))
    rare = np.flatnonzero(targets[:, 2] == 1)[5:]
    targets[rare, 2] = 0
    scores = expit(3 * logits + 1)
    found = calibrate(targets, scores, groups, FINDINGS, methods=["platt"], guard=20).calibration.findings
    subjects = len(np.unique(groups[targets[:, 2] == 1]))
    assert found["Hernia"].own == pytest.approx(subjects / (subjects + 20))
    assert found["Mass"].own > 0.85
    own = CALIBRATORS["platt"](Cells.of(scores[:, 2], targets[:, 2] == 1))
    pooled = CALIBRATORS["platt"](Cells.pooled([Cells.of(scores[:, c], targets[:, c] == 1) for c in range(3)]))
    share = found["Hernia"].own
    assert found["Hernia"].map.c == pytest.approx(share * own.c + (1 - share) * pooled.c, abs=1e-6)
    free = calibrate(targets, scores, groups, FINDINGS, methods=["platt"], guard=0).calibration.findings
    assert free["Hernia"].own == 1
    assert free["Hernia"].map.c == pytest.approx(own.c, abs=1e-6)


def test_unlabelled_images_and_missing_scores_take_no_part():
    logits, targets, groups = cohort(600)
    scores = expit(3 * logits + 1)
    rng = np.random.default_rng(1)
    hidden, absent = rng.random(targets.shape) < 0.2, rng.random(targets.shape) < 0.05
    masked, holes = np.where(hidden, -1, targets), np.where(absent, np.nan, scores)
    one = calibrate(masked, holes, groups, FINDINGS, methods=["platt"], folds=2)
    other = calibrate(np.where(absent, -1, masked), scores, groups, FINDINGS, methods=["platt"], folds=2)
    assert one.calibration == other.calibration
    assert (np.isnan(one.calibrated) == absent).all()
    assert one.calibration.findings["Mass"].positives == ((masked == 1) & ~absent)[:, 0].sum()


def test_what_cannot_be_calibrated_is_left_as_it_is_and_says_why():
    logits, targets, groups = cohort(300)
    targets[:, 0], targets[:, 1] = 0, 0
    targets[0, 1] = 1
    scores = expit(3 * logits + 1)
    fitted = calibrate(targets, scores, groups, FINDINGS)
    found = fitted.calibration.findings
    assert [found[name].left for name in FINDINGS] == ["0 positives", "1 positive", ""]
    assert [found[name].method for name in FINDINGS[:2]] == ["none", "none"]
    np.testing.assert_array_equal(fitted.calibrated[:, :2], scores[:, :2])
    np.testing.assert_array_equal(fitted.calibration.apply(scores, FINDINGS)[:, :2], scores[:, :2])
    alone = calibrate(targets, scores, np.zeros(300), FINDINGS)
    assert alone.calibration.findings["Hernia"].left == "one subject"
    np.testing.assert_array_equal(alone.calibrated, scores)
    unlabelled = calibrate(np.full_like(targets, -1), scores, groups, FINDINGS)
    assert {one.left for one in unlabelled.calibration.findings.values()} == {"0 positives"}
    nothing = calibration_change(np.full_like(targets, -1), scores, unlabelled.calibrated, groups, FINDINGS, rounds=5)
    assert np.isnan(nothing.mean.differences["log_loss"].value)
    sick = calibrate(np.ones_like(targets), scores, groups, FINDINGS)
    assert {one.left for one in sick.calibration.findings.values()} == {"0 negatives"}


def test_equal_scores_and_one_finding_are_calibrated_to_the_prevalence():
    _, targets, groups = cohort(400, (0.2,))
    scores = np.full(targets.shape, 0.9)
    fitted = calibrate(targets, scores, groups, FINDINGS[:1])
    after = fitted.calibration.apply(scores, FINDINGS[:1])
    assert after[0, 0] == pytest.approx(targets.mean(), abs=0.02)


def test_wrong_arguments_and_damaged_maps_are_refused():
    logits, targets, groups = cohort(50)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        calibrate(targets, logits, groups, FINDINGS)
    with pytest.raises(ValueError, match="must both be"):
        calibrate(targets, expit(logits), groups, FINDINGS[:2])
    with pytest.raises(ValueError, match="no method 'spline'"):
        calibrate(targets, expit(logits), groups, FINDINGS, methods=["spline"])
    with pytest.raises(ValueError, match="changes the ranking"):
        LogitMap(a=-1)
    with pytest.raises(ValueError, match="knots must ascend"):
        LogitMap(knots=((0.0, 1.0), (1.0, 0.5)))
    with pytest.raises(ValueError, match="no calibration of Nodule"):
        Calibration(findings={}).apply(np.zeros((1, 1)), ["Nodule"])
