"""Scores by group: fairlearn's and scikit-learn's numbers, corrected tests, suppression, and null groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, false_negative_rate
from scipy.stats import false_discovery_control
from sklearn.metrics import average_precision_score, roc_auc_score

from cxrlt_ray.evaluation.corrected import holm
from cxrlt_ray.evaluation.groups import FEWEST, MEAN, compare_groups
from cxrlt_ray.evaluation.parts import Images, Part, best_f1_thresholds, difference
from cxrlt_ray.evaluation.prevalence import ap_at, to_prevalence, weighted_ap, weighted_auroc

FINDINGS = ("Mass", "Edema", "Hernia")


def drawn(subjects: int = 400, seed: int = 0, faint: float = 0.0, each: int = 2):
    """Targets, scores, sexes and subjects; `faint` lowers the logits of positives of Mass in F."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(subjects), each)
    sex = np.where(rng.random(subjects) < 0.5, "F", "M")[subject]
    targets = (rng.random((len(subject), 3)) < [0.3, 0.15, 0.1]).astype(np.int8)
    logits = 1.8 * targets - 1.5 + rng.normal(size=targets.shape)
    logits[:, 0] -= faint * targets[:, 0] * (sex == "F")
    return targets, 1 / (1 + np.exp(-logits)), sex, subject


def report(targets, scores, sex, subject, **options):
    return compare_groups(targets, scores, FINDINGS, {"sex": sex}, subject, **{"rounds": 100} | options)


def test_scores_of_each_group_are_those_of_fairlearns_metric_frame():
    targets, scores, sex, subject = drawn()
    targets[::7, 1] = -1  # not labelled: left out of that finding
    thresholds = np.array([0.4, 0.3, 0.25])
    result = report(targets, scores, sex, subject, thresholds=thresholds)
    for c, finding in enumerate(FINDINGS):
        known = targets[:, c] >= 0
        y, p, groups = targets[known, c], scores[known, c], sex[known]
        ranked = MetricFrame(
            metrics={"auroc": roc_auc_score, "ap": average_precision_score},
            y_true=y,
            y_pred=p,
            sensitive_features=groups,
        )
        decided = MetricFrame(
            metrics={"fnr": false_negative_rate}, y_true=y, y_pred=p >= thresholds[c], sensitive_features=groups
        )
        for group in result.groups:
            cell = group.cells[c]
            assert cell.scores["auroc"].value == pytest.approx(ranked.by_group["auroc"][group.group])
            assert cell.scores["ap"].value == pytest.approx(ranked.by_group["ap"][group.group])
            assert cell.scores["fnr"].value == pytest.approx(decided.by_group["fnr"][group.group])
            own = groups == group.group
            assert cell.scores["bias"].value == pytest.approx(p[own].mean() - y[own].mean())
            assert (cell.positives, cell.labelled) == ((y[own] == 1).sum(), own.sum())
        gaps = {gap.metric: gap for gap in result.gaps if gap.finding == finding}
        assert gaps["auroc"].difference.value == pytest.approx(ranked.difference(method="between_groups")["auroc"])
        assert gaps["fnr"].difference.value == pytest.approx(decided.difference(method="between_groups")["fnr"])


def test_the_mean_is_over_the_findings_that_every_known_group_has():
    targets, scores, sex, subject = drawn()
    targets[sex == "F", 2] = 0
    result = report(targets, scores, sex, subject)
    assert result.common == {"sex": 2}
    women, men = result.groups
    assert women.cells[2] is None
    assert men.cells[2] is not None
    expected = np.mean([roc_auc_score(targets[sex == "M", c], scores[sex == "M", c]) for c in (0, 1)])
    assert men.mean.scores["auroc"].value == pytest.approx(expected)


def test_a_planted_difference_is_flagged_and_of_the_others_none():
    targets, scores, sex, subject = drawn(faint=1.5)
    result = report(targets, scores, sex, subject)
    assert {(flag.finding, flag.worse) for flag in result.flags if flag.metric != "bias"} >= {("Mass", "F")}
    assert not [flag for flag in result.flags if flag.finding in ("Edema", "Hernia")]
    assert not report(*drawn()).flags


def test_two_groups_are_one_comparison_and_three_are_three():
    targets, scores, sex, subject = drawn()
    assert report(targets, scores, sex, subject).tests == 3 * (len(FINDINGS) + 1)
    race = np.array(["A", "B", "C"])[subject % 3]
    result = compare_groups(targets, scores, FINDINGS, {"race": race}, subject, rounds=50)
    assert result.tests == 3 * 3 * (len(FINDINGS) + 1)
    assert all(contrast.other is None for contrast in result.contrasts)


def test_group_names_say_which_is_less_and_their_order_does_not_change_p():
    targets, scores, sex, subject = drawn(faint=1.0)
    swapped = np.where(sex == "F", "Z", "A")
    one, other = report(targets, scores, sex, subject), report(targets, scores, swapped, subject)
    pairs = list(zip(one.contrasts, other.contrasts, strict=True))
    for a, b in pairs:
        assert a.difference.value == pytest.approx(-b.difference.value)
        assert a.p == pytest.approx(b.p)
    assert {c.worse for c, _ in pairs if c.finding == "Mass" and c.metric == "auroc"} == {"F"}
    assert {c.worse for _, c in pairs if c.finding == "Mass" and c.metric == "auroc"} == {"Z"}


def test_small_groups_and_cells_leave_neither_scores_nor_names():
    targets, scores, sex, subject = drawn()
    sex = sex.copy()
    sex[subject < 10] = "X"
    rare = (sex == "F") & (targets[:, 2] == 1)
    few = np.isin(subject, np.unique(subject[rare])[: FEWEST - 1])
    targets[rare & ~few, 2] = 0
    result = report(targets, scores, sex, subject)
    assert [group.group for group in result.groups] == ["F", "M"]
    assert result.suppressed == {"sex": 1}
    assert result.groups[0].cells[2] is None
    frame = result.frame()
    assert "X" not in set(frame["group"])
    row = frame[(frame["group"] == "F") & (frame["finding"] == "Hernia")].iloc[0]
    assert row.drop(["by", "group", "finding", "images", "subjects"]).isna().all()
    assert not [c for c in result.contrasts if c.finding == "Hernia" and c.group == "F"]
    assert report(targets, scores, sex, subject, min_group=5).suppressed == {"sex": 0}


def test_images_of_no_known_group_are_shown_by_themselves_and_compared_with_none():
    targets, scores, sex, subject = drawn()
    half = np.where(subject % 4 == 0, "unknown", sex)
    result = report(targets, scores, half, subject)
    assert [group.group for group in result.groups] == ["F", "M", "unknown"]
    kept = half != "unknown"
    alone = report(targets[kept], scores[kept], sex[kept], subject[kept], thresholds=np.array(result.thresholds))
    assert [c.difference.value for c in result.contrasts] == pytest.approx(
        [c.difference.value for c in alone.contrasts]
    )
    assert {gap.largest for gap in result.gaps} <= {"F", "M"}


@pytest.mark.parametrize("sexes", [["unknown"], ["F"]])
def test_a_column_of_one_group_or_none_has_no_test_and_no_gap(sexes):
    targets, scores, _, subject = drawn()
    result = report(targets, scores, np.resize(sexes, len(subject)), subject)
    assert (result.tests, result.gaps, result.flags) == (0, (), ())
    assert len(result.groups) == 1


@pytest.mark.parametrize("case", ["one subject", "equal scores", "no positives", "unlabelled"])
def test_what_cannot_be_compared_is_no_flag_and_no_error(case):
    targets, scores, sex, subject = drawn(subjects=60)
    if case == "one subject":
        targets, scores, sex, subject = (array[:1] for array in (targets, scores, sex, subject))
    if case == "equal scores":
        scores = np.full(scores.shape, 0.2)
    if case == "no positives":
        targets = np.zeros_like(targets)
    if case == "unlabelled":
        targets = np.full_like(targets, -1)
    result = report(targets, scores, sex, subject)
    assert not [flag for flag in result.flags if flag.metric != "bias"]
    result.frame()


def test_the_same_seed_gives_the_same_report():
    assert report(*drawn()) == report(*drawn())


def test_a_group_without_a_missed_positive_is_not_surely_better():
    """None of 6 missed against half of 60: by a binomial p is .03; its own draws would say that it is impossible."""
    targets = np.repeat([1, 0], [66, 200]).astype(np.int8)[:, None]
    scores = np.where(targets == 1, 0.9, 0.1).astype(float)
    scores[6:36] = 0.3  # missed at .5, and still above all negatives
    group = np.array(["A"] * 6 + ["B"] * 60 + ["A", "B"] * 100)
    images = Images.of(targets, scores, np.arange(266), np.array([0.5]), rounds=200)
    one = np.ones(1, bool)
    result = difference(images.part(group == "A"), images.part(group == "B"), "fnr", one)
    assert result.estimate.value == pytest.approx(-0.5)
    assert 0.01 < result.p < 0.1


def test_p_is_below_5_percent_where_the_interval_excludes_zero():
    result = report(*drawn(faint=0.3))
    for contrast in result.contrasts:
        assert (contrast.p < 0.05) == contrast.difference.excludes_zero


def test_the_interval_of_a_difference_holds_it():
    """Samples of 200 subjects, of whom the same AUROC of each of three findings is true in both groups."""
    held = []
    for seed in range(100):
        targets, scores, sex, subject = drawn(subjects=200, seed=seed, each=1)
        images = Images.of(targets, scores, subject, np.full(3, 0.5), rounds=64, seed=seed)
        parts = [images.part(sex == group, with_ap=False) for group in "FM"]
        results = [difference(*parts, "auroc", np.arange(3) == c) for c in range(3)]
        held += [not result.estimate.excludes_zero for result in results]
    assert 0.93 <= np.mean(held) <= 0.99


def test_gap_by_chance_is_what_equal_groups_have():
    """The mean largest gap of five equal groups over samples is what a report says chance would give."""
    gaps, chances = [], []
    for seed in range(8):
        targets, scores, _, subject = drawn(subjects=500, seed=seed, each=1)
        race = np.array(list("ABCDE"))[subject % 5]
        result = compare_groups(targets, scores, FINDINGS, {"race": race}, subject, rounds=64)
        gap = next(gap for gap in result.gaps if gap.finding == MEAN and gap.metric == "auroc")
        gaps.append(gap.difference.value)
        chances.append(gap.chance)
    assert np.mean(chances) == pytest.approx(np.mean(gaps), rel=0.35)


# corrected p values


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closed_test_of_bonferroni(seed):
    """A hypothesis falls where every intersection with it does: the definition of a closed test."""
    p = np.random.default_rng(seed).random(5) ** 3
    sets = [list(s) for k in range(1, 6) for s in itertools.combinations(range(5), k)]
    closed = [max(min(1, len(s) * p[s].min()) for s in sets if i in s) for i in range(5)]
    assert holm(p) == pytest.approx(closed)
    assert (holm(p) >= false_discovery_control(p) - 1e-12).all()


def test_tests_that_were_not_made_do_not_count():
    assert holm(np.array([0.02, np.nan, np.nan])).tolist()[0] == 0.02
    assert holm(np.array([])).tolist() == []


# another prevalence


def test_ap_at_its_own_prevalence_is_ap_and_at_another_that_of_repeated_negatives():
    rng = np.random.default_rng(0)
    targets = (rng.random(300) < 0.3).astype(np.int8)
    scores = np.round(targets + rng.normal(size=300), 1)  # with ties
    assert ap_at(targets, scores, targets.mean()) == pytest.approx(average_precision_score(targets, scores))
    again = np.concatenate([np.flatnonzero(targets == 1), np.repeat(np.flatnonzero(targets == 0), 4)])
    expected = average_precision_score(targets[again], scores[again])
    assert ap_at(targets, scores, targets[again].mean()) == pytest.approx(expected)


def test_weighted_scores_are_scikit_learns():
    rng = np.random.default_rng(1)
    targets, weights = (rng.random(200) < 0.3).astype(np.int8), rng.random(200)
    scores = np.round(targets + rng.normal(size=200), 1)
    expected = average_precision_score(targets, scores, sample_weight=weights)
    assert weighted_ap(targets, scores, weights) == pytest.approx(expected)
    assert weighted_auroc(targets, scores, weights) == pytest.approx(
        roc_auc_score(targets, scores, sample_weight=weights)
    )
    assert np.isnan(to_prevalence(np.zeros(3, np.int8), 0.5)).all()


def test_draws_of_ap_at_a_prevalence_are_those_of_images_drawn_again():
    targets, scores, _, subject = drawn(subjects=40)
    scores = np.round(scores, 2)
    prevalence = np.array([0.5, 0.1, 0.02])
    images = Images.of(targets, scores, subject, np.full(3, 0.5), prevalence, rounds=70, seed=3)
    draws = images.part(np.ones(len(targets), bool)).draws["ap_even"]
    times = np.concatenate(images.blocks, axis=1)[:, :70]
    for r in (0, 63, 69):
        rows = np.repeat(np.arange(len(targets)), times[images.subject, r])
        expected = [ap_at(targets[rows, c], scores[rows, c], prevalence[c]) for c in range(3)]
        assert draws[:, r] == pytest.approx(expected, nan_ok=True)


def test_best_f1_threshold_is_the_best_of_all():
    from sklearn.metrics import f1_score

    targets, scores, *_ = drawn(subjects=20)
    thresholds = best_f1_thresholds(targets, scores)
    for c in range(3):
        best = max(f1_score(targets[:, c], scores[:, c] >= t) for t in scores[:, c])
        assert f1_score(targets[:, c], scores[:, c] >= thresholds[c]) == pytest.approx(best)


def test_few_draws_flag_no_more_often_than_they_should():
    rng, fewest, level = np.random.default_rng(0), 10, 0.01
    counts = {name: np.array([500]) for name in ("positives", "positive_subjects", "negative_subjects")}

    def part(value):  # of one finding; true standard error .05
        draws = {"bias": value + 0.05 * rng.normal(size=(1, fewest))}
        values = {"bias": np.array([value])}
        rest = {"labelled": np.array([1000]), "prevalence": np.array([0.5]), "ece": np.array([0.0])}
        return Part(images=1000, subjects=1000, **counts, **rest, values=values, draws=draws)

    pairs = [(part(0.05 * rng.normal()), part(0.05 * rng.normal())) for _ in range(3000)]
    p = np.array([difference(*pair, "bias", np.array([True])).p for pair in pairs])
    assert (p < level).mean() < 1.6 * level  # taken as normal, it would be 2.5 times
