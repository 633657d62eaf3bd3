"""Normal gating: its formula by a loop, what cross-fitting makes of it, and an ensemble that keeps and applies it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from cxrlt_ray.ensembling.apply import applied
from cxrlt_ray.ensembling.compare import compare
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.pool import Pool
from cxrlt_ray.ensembling.stored import as_applied
from cxrlt_ray.errors import UsageError
from cxrlt_ray.selection import honest, spaces
from cxrlt_ray.selection.gating import STRENGTHS, gated_by_normal
from cxrlt_ray.selection.honest import fit
from cxrlt_ray.selection.method import Method
from cxrlt_ray.selection.views import StudyRule, options

FINDINGS = ("Mass", "Normal", "Hernia", "Edema")
NORMAL = 1


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_each_finding_but_normal_is_multiplied_by_one_less_the_share_of_normal(strength):
    scores = np.random.default_rng(0).random((2, 7, 4)).astype(np.float32)
    result = gated_by_normal(scores, NORMAL, strength)
    assert result.dtype == scores.dtype
    for m, n, c in np.ndindex(scores.shape):
        expected = scores[m, n, c] * (1 if c == NORMAL else 1 - strength * scores[m, n, NORMAL])
        assert result[m, n, c] == pytest.approx(expected, rel=1e-6)


def test_a_rule_gates_before_it_joins_and_ranks_refer_to_gated_scores():
    rng = np.random.default_rng(0)
    scores, reference = (rng.random((2, 40, 4)).astype(np.float32) for _ in range(2))
    study, view = np.arange(40) // 2, np.full(40, "PA")
    for how in ("none", "mean", "max", "noisy_or"):
        for space in spaces.SPACES:
            rule = StudyRule(how, gating=0.5, normal=NORMAL)
            both = [gated_by_normal(values, NORMAL, 0.5) for values in (scores, reference)]
            expected = StudyRule(how).values(space, *both, study, view)
            np.testing.assert_allclose(rule.values(space, scores, reference, study, view), expected, rtol=1e-6)


def test_what_may_be_chosen_begins_without_gating():
    assert [rule.gating for rule in options("none", None, "auto", NORMAL)] == list(STRENGTHS)
    assert STRENGTHS[0] == 0
    several = options("auto", None, "auto", NORMAL)
    assert several[:4] == [StudyRule(rule.how, normal=NORMAL) for rule in options("auto", None)]
    assert options("none", None, 0.25, NORMAL) == [StudyRule(gating=0.25, normal=NORMAL)]
    assert options("none", None, "auto", None) == [StudyRule()]
    assert str(several[-1]) == "study noisy-or, Normal gating 1"


def pool(kind: str, subjects: int = 600) -> Pool:
    """Members on images of which a share is normal.

    apart: Normal is told well, and normal images have scores of the other findings as high as those with one.
    alike: Normal's score is noise.
    """
    rng = np.random.default_rng(1)
    targets = (rng.random((subjects, 4)) < 0.12).astype(np.int8)
    targets[:, NORMAL] = ~targets[:, [0, 2, 3]].any(axis=1)
    signal = 2.0 * targets - 1 + rng.normal(size=(2, *targets.shape))
    signal[:, :, [0, 2, 3]] += rng.normal(size=(1, subjects, 1))
    signal[:, :, NORMAL] = rng.normal(size=(2, subjects))
    if kind == "apart":
        signal[:, :, NORMAL] += 6 * targets[:, NORMAL] - 3
    scores = (1 / (1 + np.exp(-signal))).astype(np.float32)
    groups = np.arange(subjects)
    names = ["a", "b"]
    return Pool(names, groups.astype(str), scores, targets, groups, [], findings=FINDINGS)


@pytest.mark.parametrize(("kind", "taken"), [("apart", True), ("alike", False)])
def test_cross_fitting_takes_gating_where_it_helps_and_refuses_it_where_it_does_not(kind, taken, capsys):
    row = compare(EnsembleFile(selector="mean", gating="auto"), "mine", pool(kind), seed=0)[-1]
    assert (row.rule.gating > 0) == taken
    printed = capsys.readouterr().out
    assert ("Normal gating 1 (so do" in printed) == taken
    assert ("each image by itself, no Normal gating (so do" in printed) == (not taken)


def test_gating_is_off_by_default(capsys):
    row = compare(EnsembleFile(selector="mean"), "mine", pool("apart"), seed=0)[-1]
    assert row.rule == StudyRule()
    np.testing.assert_allclose(row.optimistic, pool("apart").predictions.mean(axis=0), atol=1e-6)
    assert "gating" not in capsys.readouterr().out


def test_no_choice_of_a_strength_has_seen_the_subjects_it_is_scored_on(monkeypatch):
    drawn = pool("apart", 200)
    fold = drawn.groups % 4
    monkeypatch.setattr(honest, "assign_folds", lambda *_: fold)
    out = fold == 2
    flipped = np.where(out[:, None], 1 - drawn.targets, drawn.targets)
    transforms = [
        partial(StudyRule.values, rule, "probability", reference=drawn.predictions, study=fold, view=fold)
        for rule in options("none", None, "auto", NORMAL)
    ]
    rules = [lambda values, apply=apply: apply(predictions=values) for apply in transforms]
    before, after = (
        fit(Method("mean"), drawn.predictions, targets, drawn.groups, folds=4, rules=rules)
        for targets in (drawn.targets, flipped)
    )
    assert np.array_equal(before.crossed[0, out], after.crossed[0, out])
    assert before.rules[2] == after.rules[2]
    assert before.rules != after.rules  # the others did see them


@pytest.mark.parametrize("space", spaces.SPACES)
def test_an_ensemble_keeps_the_strength_that_it_took_and_applies_it(space):
    drawn, file = pool("apart"), EnsembleFile(selector="mean", gating=0.5, space=space)
    row = compare(file, "mine", drawn, seed=0)[-1]
    assert as_applied(file, row)["gating"] == 0.5
    members = gated_by_normal(drawn.predictions, NORMAL, 0.5)
    expected = spaces.out_of(space, spaces.into(space, members, members).mean(axis=0))
    np.testing.assert_allclose(row.optimistic, expected, atol=1e-5)
    again = applied(space, row.rule, drawn.predictions, drawn.predictions, row.weights, drawn.image_id, drawn.groups)
    np.testing.assert_allclose(again, row.optimistic, atol=1e-5)


def test_gating_needs_normal_and_auto_says_that_it_is_missing(capsys):
    drawn = pool("apart")
    unnamed = Pool(**{**drawn.__dict__, "findings": ("Mass", "Nodule", "Hernia", "Edema")})
    row = compare(EnsembleFile(selector="mean", gating="auto"), "mine", unnamed, seed=0)[-1]
    assert row.rule == StudyRule()
    assert "Normal gating left out: no finding is called Normal" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"gating: 0\.5 needs a finding Normal"):
        compare(EnsembleFile(selector="mean", gating=0.5), "mine", unnamed, seed=0)
