"""Thresholds: what they aim at is held on subjects that did not choose them; what they cost; decision curves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_curve

from cxrlt_ray.data.tasks import TASK1, TASK1_2026
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.critical import critical_findings
from cxrlt_ray.evaluation.decisions import decision_curve
from cxrlt_ray.evaluation.thresholds import AIMS, Aim, choose_thresholds, operation, threshold


def sample(images=600, seed=0):
    rng = np.random.default_rng(seed)
    targets = (rng.random(images) < 0.2).astype(np.int8)
    return targets, expit(2 * targets - 1.5 + rng.normal(size=images)), np.arange(images) // 2


def test_f1s_threshold_is_the_best_of_all():
    targets, scores, groups = sample()
    precision, recall, _ = precision_recall_curve(targets, scores)
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    value = threshold(targets, scores, groups, Aim("f1"))
    assert f1_score(targets, scores >= value) == pytest.approx(best)
    assert f1_score(targets, scores.astype(np.float32) >= value) == pytest.approx(best)  # as scores are stored


@pytest.mark.parametrize("bound", [0.8, 0.95])
def test_an_aimed_at_sensitivity_is_expected_elsewhere_and_not_by_calling_all(bound):
    wide = sample(100_000, 99)
    reached, called = [], []
    for seed in range(150):
        value = threshold(*sample(200, seed), Aim("sensitivity", bound))
        reached.append((wide[1][wide[0] == 1] >= value).mean())
        called.append((wide[1] >= value).mean())
    assert bound - 0.01 < np.mean(reached) < bound + 0.04
    assert np.mean(called) < 0.95


def test_too_few_positive_subjects_call_every_image_and_say_so():
    targets, scores, groups = sample(60)
    few = np.where(np.cumsum(targets) > 8, 0, targets).astype(np.int8)
    fold = groups % 2
    (one,) = choose_thresholds(
        few[:, None], scores[:, None], groups, ["Mass"], [Aim("sensitivity", 0.95)], fold, rounds=20
    )
    assert one.value == 0
    assert "too few positive subjects" in one.note
    assert one.crossed.sensitivity.value == 1
    assert one.crossed.fpr.value == 1


def test_equal_scores_call_every_image_and_not_for_want_of_positives():
    targets, scores, groups = sample()
    for aim in (Aim("f1"), Aim("sensitivity", 0.5)):
        chosen = choose_thresholds(
            targets[:, None], np.full_like(scores, 0.5)[:, None], groups, ["Mass"], [aim], groups % 2, rounds=5
        )
        assert chosen[0].note == "no higher threshold fits this aim: every image is called"


def test_missed_at_most_is_sensitivity_by_another_name_and_for_critical_findings_alone():
    targets, scores, groups = sample()
    assert threshold(targets, scores, groups, Aim("critical", 0.1)) == threshold(
        targets, scores, groups, Aim("sensitivity", 0.9)
    )
    both = np.column_stack([targets, targets]), np.column_stack([scores, scores])
    aims = [Aim("f1"), Aim("critical", 0.1)]
    chosen = choose_thresholds(*both, groups, ["Mass", "Pneumothorax"], aims, groups % 3, ["Pneumothorax"], rounds=20)
    assert [(one.finding, str(one.aim)) for one in chosen] == [
        ("Mass", "f1"),
        ("Pneumothorax", "f1"),
        ("Pneumothorax", "critical=0.1"),
    ]


@pytest.mark.parametrize("name", sorted(AIMS))
def test_what_is_reported_comes_of_thresholds_that_did_not_see_the_subject(name):
    targets, scores, groups = sample(300)
    aim, fold = Aim(name, 0.2 if AIMS[name].bounded else 0.0), groups % 3
    (one,) = choose_thresholds(
        targets[:, None], scores[:, None], groups, ["Mass"], [aim], fold, critical=["Mass"], rounds=20
    )
    called = np.zeros(300, bool)
    for k in range(3):
        rest = fold != k
        called[~rest] = scores[~rest] >= threshold(targets[rest], scores[rest], groups[rest], aim)
    true, false, missed, hit = confusion_matrix(targets, called).ravel()
    assert one.crossed.sensitivity.value == pytest.approx(hit / (hit + missed))
    assert one.crossed.fpr.value == pytest.approx(false / (false + true))
    assert one.crossed.precision.value == pytest.approx(hit / (hit + false))
    assert one.crossed.f1.value == pytest.approx(f1_score(targets, called))
    assert one.crossed.false_alarms.value == pytest.approx(1000 * false / 300)
    assert one.crossed.sensitivity.low < one.crossed.sensitivity.value < one.crossed.sensitivity.high


def test_intervals_of_sensitivity_and_alarms_hold_the_truth():
    wide = sample(100_000, 99)
    truth = (wide[1][wide[0] == 1] >= 0.5).mean(), 1000 * ((wide[0] == 0) & (wide[1] >= 0.5)).mean()
    held = []
    for seed in range(150):
        targets, scores, groups = sample(300, seed)
        done = operation(targets, scores >= 0.5, groups, rounds=200)
        both = zip((done.sensitivity, done.false_alarms), truth, strict=True)
        held.append([one.low <= value <= one.high for one, value in both])
    assert (np.mean(held, axis=0) > 0.9).all()


def test_unlabelled_images_count_nowhere_and_findings_without_positives_get_no_threshold():
    targets, scores, groups = sample(200)
    hidden = np.where(groups % 5 == 0, -1, targets).astype(np.int8)
    rest = groups % 5 != 0
    aim = Aim("f1")
    assert threshold(hidden, scores, groups, aim) == threshold(targets[rest], scores[rest], groups[rest], aim)
    assert operation(hidden, scores >= 0.5, groups, rounds=10).images == rest.sum()
    assert choose_thresholds(0 * hidden[:, None], scores[:, None], groups, ["Mass"], [aim], groups % 2) == ()
    assert np.isnan(threshold(0 * targets, scores, groups, aim))
    (one,) = choose_thresholds(targets[:, None], scores[:, None], 0 * groups, ["Mass"], [aim], 0 * groups, rounds=10)
    assert "not cross-fitted" in one.note
    equal = threshold(targets, np.full(200, 0.5), groups, Aim("sensitivity", 0.5))
    assert equal == 0


def test_aims_are_read_as_they_are_written_and_others_refused():
    assert [str(Aim.parse(text)) for text in ("f1", "sensitivity=0.9", "critical=5e-2")] == [
        "f1",
        "sensitivity=0.9",
        "critical=0.05",
    ]
    for text, message in {
        "recall=0.9": "is no aim: it takes f1, sensitivity=X, critical=X",
        "sensitivity": "takes a share between 0 and 1",
        "sensitivity=1": "takes a share between 0 and 1",
        "critical=x": "takes a share between 0 and 1",
        "f1=0.5": "f1 takes no number",
    }.items():
        with pytest.raises(UsageError, match=message):
            Aim.parse(text)


def test_critical_findings_are_those_of_the_list_or_of_ones_own(tmp_path):
    assert critical_findings(TASK1)[:2] == ("Hydropneumothorax", "Pneumomediastinum")
    assert "pneumoperitoneo" in critical_findings(TASK1_2026)
    with pytest.raises(UsageError, match=r"none of the findings here is in critical\.yaml"):
        critical_findings(["Mass"])
    path = tmp_path / "mine.yaml"
    path.write_text("findings: [mass, Pleural effusion]")
    assert critical_findings(["Pleural Effusion", "Mass", "Edema"], str(path)) == ("Pleural Effusion", "Mass")
    for content, message in {
        "findings: [Masses]": "'Masses' is none of the findings here: Mass",
        "findings: [Mass, mass]": "'mass' stands twice",
        "findings: []": "key 'findings'",
        "finding: [Mass]": "unknown key 'finding'",
        "[Mass]": "must hold a mapping",
    }.items():
        path.write_text(content)
        with pytest.raises(UsageError, match=message):
            critical_findings(["Mass"], str(path))
    with pytest.raises(UsageError, match="cannot be read"):
        critical_findings(["Mass"], str(tmp_path / "none.yaml"))


def test_net_benefit_is_vickers_and_elkins():
    targets, scores, groups = sample(500)
    curve = decision_curve(targets, scores, groups, "Mass", points=[0.1, 0.4], rounds=50)
    assert curve.prevalence == pytest.approx(targets.mean())
    for point in curve.points:
        p, called = point.probability, scores >= point.probability
        odds = p / (1 - p)
        wanted = (called & (targets == 1)).mean() - (called & (targets == 0)).mean() * odds
        assert point.net_benefit.value == pytest.approx(wanted)
        assert point.act_on_all == pytest.approx(targets.mean() - (1 - targets.mean()) * odds)
        assert point.gain.value == pytest.approx(wanted - max(point.act_on_all, 0))
        assert point.net_benefit.low < wanted < point.net_benefit.high


def test_acting_on_calibrated_scores_is_worth_no_less_than_on_miscalibrated_ones():
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 1.5, 20_000)
    targets, groups = (rng.random(20_000) < expit(logits)).astype(np.int8), np.arange(20_000)
    good, bad = (decision_curve(targets, expit(z), groups, rounds=20).points for z in (logits, 3 * logits + 1))
    assert all(g.net_benefit.value > b.net_benefit.value - 0.001 for g, b in zip(good, bad, strict=True))
    assert not decision_curve(np.zeros(9), np.zeros(9), np.arange(9), rounds=5).points[0].net_benefit.known
