"""Another site beside home: drops of independent samples, and what explains them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cxrlt_ray.evaluation.groups import MEAN
from cxrlt_ray.evaluation.sites import ScoredImages, compare_site, expected

FINDINGS = ("Mass", "Edema")


def site(images: int, seed: int, prevalence=(0.2, 0.2), lateral=0.3, strong=2.0, faint=0.8, plus=0.0) -> ScoredImages:
    """Positives stand out by `strong` in frontal images and by `faint` in lateral ones; `plus` is added to logits."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, 2)) < prevalence).astype(np.int8)
    views = np.where(rng.random(images) < lateral, "LATERAL", "PA").astype(object)
    apart = np.where(views == "PA", strong, faint)[:, None]
    logits = apart * targets - 2 + rng.normal(size=targets.shape) + plus
    return ScoredImages(targets, 1 / (1 + np.exp(-logits)), np.arange(images) // 2, views)


def test_scores_are_those_of_either_site_and_differences_are_the_sites_less_homes():
    home, other = site(600, 0), site(400, 1, strong=1.0)
    report = compare_site("nih", FINDINGS, home, other, rounds=100)
    drop = report.drops[1]
    of = [average_precision_score(part.targets[:, 0], part.scores[:, 0]) for part in (home, other)]
    assert (drop.home["ap"].value, drop.site["ap"].value) == pytest.approx(tuple(of))
    assert drop.differences["ap"].value == pytest.approx(of[1] - of[0])
    assert drop.differences["auroc"].high < 0
    assert drop.flagged
    mean = np.mean([d.differences["auroc"].value for d in report.drops[1:]])
    assert report.drops[0].finding == MEAN
    assert report.drops[0].differences["auroc"].value == pytest.approx(mean)


def test_parts_of_a_difference_add_up():
    report = compare_site("nih", FINDINGS, site(500, 0), site(500, 1, (0.4, 0.1), 0.7, plus=1), rounds=50)
    for drop in report.drops:
        for metric, parts in (("ap", drop.ap), ("auroc", drop.auroc), ("bias", drop.bias)):
            total = np.nansum([parts.prevalence, parts.views, parts.rest])
            assert total == pytest.approx(drop.differences[metric].value)


def test_another_prevalence_alone_is_explained_by_it():
    home, other = site(20_000, 0), site(20_000, 1, (0.02, 0.02))
    drop = compare_site("nih", FINDINGS, home, other, rounds=64).drops[0]
    assert drop.differences["ap"].value < -0.2
    assert drop.ap.prevalence == pytest.approx(drop.differences["ap"].value, abs=0.04)
    assert abs(drop.ap.views) < 0.03
    assert abs(drop.differences["auroc"].value) < 0.03
    assert drop.bias.prevalence == pytest.approx(drop.differences["bias"].value, abs=0.01)


def test_other_views_alone_are_explained_by_them():
    home, other = site(20_000, 0, lateral=0.2), site(20_000, 1, lateral=0.9)
    drop = compare_site("nih", FINDINGS, home, other, rounds=64).drops[0]
    assert drop.differences["auroc"].value < -0.1
    assert drop.auroc.views == pytest.approx(drop.differences["auroc"].value, abs=0.02)
    assert drop.ap.views == pytest.approx(drop.differences["ap"].value, abs=0.03)


def test_a_weaker_sign_is_explained_by_neither():
    home, other = site(10_000, 0, strong=2.5, faint=2.5), site(10_000, 1, strong=1.0, faint=1.0)
    drop = compare_site("nih", FINDINGS, home, other, rounds=64).drops[0]
    assert drop.ap.rest == pytest.approx(drop.differences["ap"].value, abs=0.04)


def test_views_that_home_lacks_explain_nothing():
    home = site(500, 0, lateral=0.0)
    for other in (site(500, 1, lateral=0.5), site(500, 1)):
        views = np.full(500, "UNKNOWN", object) if other.views[0] == "PA" else other.views
        drop = compare_site(
            "x", FINDINGS, home, ScoredImages(other.targets, other.scores, other.subjects, views), rounds=20
        )
        assert np.isnan(drop.drops[0].ap.views)
        assert np.isnan(expected(home, other, 0)["auroc_views"])


def test_the_same_site_twice_differs_by_nothing_and_is_explained_by_nothing():
    home = site(800, 0)
    report = compare_site("x", FINDINGS, home, home, rounds=100)
    for drop in report.drops:
        assert drop.differences["auroc"].value == 0
        assert not drop.flagged
        assert (drop.ap.prevalence, drop.ap.views, drop.ap.rest) == pytest.approx((0, 0, 0))


def test_findings_that_the_site_does_not_label_or_hardly_has_are_named_and_left_out():
    home, other = site(400, 0), site(400, 1)
    targets = other.targets.copy()
    targets[:, 0] = -1
    report = compare_site(
        "x", FINDINGS, home, ScoredImages(targets, other.scores, other.subjects, other.views), rounds=20
    )
    assert report.not_labelled == ("Mass",)
    assert [drop.finding for drop in report.drops] == [MEAN, "Edema"]
    targets[4:, 1] = 0
    report = compare_site(
        "x", FINDINGS, home, ScoredImages(targets, other.scores, other.subjects, other.views), rounds=20
    )
    assert report.left_out == ("Edema",)
    assert report.drops == ()
    assert report.frame().empty


def test_expected_scores_are_those_of_home_weighed():
    home, other = site(300, 0), site(300, 1, (0.5, 0.5))
    share = other.targets[:, 0].mean()
    y = home.targets[:, 0]
    weights = np.where(y == 1, share / y.mean(), (1 - share) / (1 - y.mean()))
    of_sklearn = average_precision_score(y, home.scores[:, 0], sample_weight=weights)
    assert expected(home, other, 0)["ap_prevalence"] == pytest.approx(of_sklearn)
    by_view = np.empty(len(y))
    for label in (0, 1):
        for view in ("PA", "LATERAL"):
            own = (y == label) & (home.views == view)
            theirs = (other.targets[:, 0] == label) & (other.views == view)
            by_view[own] = theirs.sum() / own.sum()
    assert expected(home, other, 0)["auroc_views"] == pytest.approx(
        roc_auc_score(y, home.scores[:, 0], sample_weight=by_view)
    )
    assert expected(home, other, 0)["ap_views"] == pytest.approx(
        average_precision_score(y, home.scores[:, 0], sample_weight=by_view)
    )
