"""How a study's images speak together: rules against plain loops, and what cross-fitting makes of them."""

from __future__ import annotations

import gc
import time
import weakref
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_ray.ensembling.apply import applied
from cxrlt_ray.ensembling.compare import compare
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.pool import Pool
from cxrlt_ray.ensembling.stored import as_applied
from cxrlt_ray.selection import honest, spaces, views
from cxrlt_ray.selection.honest import as_given, combine, fit, side_by_side
from cxrlt_ray.selection.method import Method
from cxrlt_ray.selection.views import StudyRule, by_study, options

HOW = ("mean", "max", "noisy_or")
every_how = pytest.mark.parametrize("how", HOW)


def plainly(values, study, voice, how):
    """By a loop over images; each finding's own."""
    joined = values.astype(float).copy()
    for m, n in np.ndindex(values.shape[:2]):
        siblings = [k for k in range(len(study)) if study[k] == study[n] and voice[k] > 0]
        siblings = [k for k in siblings if not np.isnan(values[m, k]).any()]
        if siblings:
            given, weight = values[m, siblings].astype(float), voice[siblings][:, None]
            joined[m, n] = {
                "mean": lambda g, w: (g * w).sum(axis=0) / w.sum(),
                "max": lambda g, w: g.max(axis=0),
                "noisy_or": lambda g, w: 1 - np.prod((1 - g) ** w, axis=0),
            }[how](given, weight)
    return joined


@every_how
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 30),
    studies=st.integers(1, 12),
    missing=st.sampled_from([0.0, 0.2, 1.0]),
    grain=st.sampled_from([0, 1, 4]),
    laid=st.booleans(),
)
def test_a_study_speaks_as_a_plain_loop_says(how, seed, images, studies, missing, grain, laid):
    rng = np.random.default_rng(seed)
    values = rng.random((2, images, 3)).astype(np.float32)
    values = np.round(values * grain) / grain if grain else values  # certain ones, and ties
    values[rng.random((2, images, 3)) < missing / 3] = np.nan
    study, voice = rng.integers(0, studies, images), rng.choice([0, 0.5, 1, 4], images)
    joined = by_study(side_by_side(values) if laid else values, study, voice, how)
    assert joined.dtype == np.float32
    np.testing.assert_allclose(joined, plainly(values, study, voice, how), atol=1e-6)


@every_how
def test_a_study_of_one_image_and_of_forty_keep_their_bounds(how):
    rng = np.random.default_rng(0)
    values = rng.random((3, 41, 2)).astype(np.float32)
    study = np.array(["alone", *["crowd"] * 40])
    joined = by_study(values, study, np.ones(41), how)
    np.testing.assert_allclose(joined[:, 0], values[:, 0], rtol=1e-6)
    assert (joined[:, 1:] == joined[:, 1:2]).all()
    assert ((joined >= 0) & (joined <= 1)).all()
    least = {"mean": values[:, 1:].min(axis=1), "max": values[:, 1:].max(axis=1), "noisy_or": values[:, 1:].max(axis=1)}
    assert (joined[:, 1] >= least[how] - 1e-6).all()


@every_how
def test_the_challenges_size_is_joined_in_about_a_second(how):
    rng = np.random.default_rng(0)
    values = side_by_side(rng.random((4, 39_293, 40), dtype=np.float32))
    study = rng.integers(0, 23_000, 39_293)
    started = time.process_time()
    by_study(values, study, np.ones(39_293), how)
    assert time.process_time() - started < 1.5  # 0.1 s; a loop over studies takes 10


def test_no_rule_leaves_values_where_they_are():
    values = np.random.default_rng(0).random((2, 5, 3))
    assert by_study(values, np.zeros(5), np.ones(5), "none") is values


# ---------------------------------------------------------------- rules


def test_views_weigh_what_a_rule_gives_them_and_unnamed_ones_1():
    rule = StudyRule("mean", {"PA": 3.0, "LATERAL": 0.0})
    assert rule.view_weights(np.array(["PA", "AP", "LATERAL", "UNKNOWN"])).tolist() == [3, 1, 0, 1]
    assert StudyRule("max").view_weights(np.array(["PA", "LATERAL"])).tolist() == [1, 1]


def test_the_mean_acts_in_the_files_space_and_the_others_on_probabilities():
    rng = np.random.default_rng(0)
    scores, study, view = rng.random((2, 60, 3)).astype(np.float32), np.arange(60) // 2, np.full(60, "PA")
    for space in spaces.SPACES:
        placed = spaces.into(space, scores, scores)
        mean = StudyRule("mean").values(space, scores, scores, study, view)
        np.testing.assert_allclose(mean[:, ::2], (placed[:, ::2] + placed[:, 1::2]) / 2, rtol=1e-5)
        pairs = np.stack([scores[:, ::2], scores[:, 1::2]]).astype(float)
        for how, joined in (("max", pairs.max(axis=0)), ("noisy_or", 1 - (1 - pairs).prod(axis=0))):
            values = StudyRule(how).values(space, scores, scores, study, view)
            expected = spaces.into(space, joined.astype(np.float32), scores)
            np.testing.assert_allclose(values[:, ::2], expected, rtol=1e-4)
            assert (values[:, ::2] == values[:, 1::2]).all()
        assert np.array_equal(StudyRule().values(space, scores, scores, study, view), placed)


def test_what_may_be_chosen_among_begins_with_nothing():
    stated = {"PA": 2.0, "LATERAL": 1.0}
    assert options("none", None) == [StudyRule()]
    assert options("mean", stated) == [StudyRule("mean", stated)]
    assert options("auto", None) == [StudyRule(), StudyRule("mean"), StudyRule("max"), StudyRule("noisy_or")]
    assert [rule.views for rule in options("auto", stated)] == [None, stated, stated, stated]
    learned = [str(rule) for rule in options("auto", "learned")]
    assert learned[:3] == ["each image by itself"] + [f"study mean, frontal {w} : lateral 1" for w in (1, 2)]
    assert "study mean, frontal 1 : lateral 0" in learned
    assert learned[-2:] == ["study maximum", "study noisy-or"]
    assert {rule.how for rule in options("noisy_or", "learned")} == {"noisy_or"}
    assert str(StudyRule("mean", {"PA": 2.0, "OTHER": 0.5})) == "study mean, PA 2, OTHER 0.5"


# ---------------------------------------------------------------- chosen by cross-fitting


def cohort(kind, studies=500, findings=4, seed=0):
    """A pool of two members on studies of a frontal and a lateral image, and how well each image tells the label.

    twice: both tell, independently.  one: a sign is in one of the two views only.  frontal: laterals tell nothing.
    apart: labels are of images, and a study's two have nothing to do with each other.
    """
    rng = np.random.default_rng(seed)
    study, view = np.repeat(np.arange(studies), 2), np.tile(["PA", "LATERAL"], studies)
    targets = (rng.random((studies, findings)) < 0.2).repeat(2, axis=0)
    if kind == "apart":
        targets = rng.random(targets.shape) < 0.2
    sight = np.ones(targets.shape)
    if kind == "one":
        shown = rng.integers(0, 2, (studies, findings)).repeat(2, axis=0)
        sight = 1.5 * (shown == np.tile([0, 1], studies)[:, None])
    if kind == "frontal":
        sight = np.where(view == "PA", 1.5, 0.0)[:, None]
    logits = 2 * sight * targets - 2 + rng.normal(size=(2, *targets.shape))
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    groups = study // 2
    return Pool(["a", "b"], study, scores, targets.astype(np.int8), groups, [], study=study, view=view)


def rules_of(pool, given, space="probability"):
    return [partial(_apply, rule, space, pool) for rule in given]


def _apply(rule, space, pool, predictions):
    return rule.values(space, predictions, predictions, pool.study, pool.view)


def fitted(pool, methods, given, space="probability", **more):
    return fit(methods, pool.predictions, pool.targets, pool.groups, rules=rules_of(pool, given, space), **more)


@pytest.mark.parametrize(
    ("kind", "taken"), [("twice", ["mean", "noisy_or"]), ("one", ["max", "noisy_or"]), ("apart", ["none"])]
)
def test_images_are_joined_as_it_helps_and_not_where_it_does_not(kind, taken):
    rules = options("auto", None)
    result = fitted(cohort(kind), Method("mean"), rules, space="logit")
    assert rules[result.rule].how in taken


def test_weights_of_views_are_learned_where_laterals_tell_nothing():
    rules = options("mean", "learned")
    result = fitted(cohort("frontal"), Method("mean"), rules)
    assert rules[result.rule].views in ({"PA": 4, "AP": 4, "LATERAL": 1}, {"PA": 1, "AP": 1, "LATERAL": 0})
    assert fitted(cohort("twice"), Method("mean"), rules).rule == 0  # equal weights, unless others are surely better


def test_another_rule_is_taken_only_by_more_than_one_standard_error(monkeypatch):
    pool, rules = cohort("twice"), [StudyRule(), StudyRule("mean")]
    assert fitted(pool, Method("mean"), rules).rule == 1
    monkeypatch.setattr(honest, "BETTER", 1000.0)
    assert fitted(pool, Method("mean"), rules).rule == 0
    monkeypatch.setattr(honest, "BETTER", 0.0)
    assert fitted(pool, Method("mean"), [StudyRule(), StudyRule()]).rule == 0  # of equals the first


def test_the_margin_of_rules_is_not_that_of_methods(monkeypatch):
    monkeypatch.setattr(honest, "BETTER", 1000.0)
    assert (
        fitted(cohort("twice"), [Method("mean"), Method("best")], [StudyRule(), StudyRule("mean")], margin=0).rule == 0
    )


def test_rules_that_are_not_taken_change_nothing():
    pool, methods = cohort("one"), [Method("mean"), Method("greedy", {"rounds": 5}, guard=5.0)]
    rules = options("auto", None)
    among = fitted(pool, methods, rules)
    alone = fit(methods, rules_of(pool, rules)[among.rule](pool.predictions), pool.targets, pool.groups)
    assert among.method == alone.method
    assert np.array_equal(among.weights, alone.weights)
    assert np.array_equal(among.fold_weights, alone.fold_weights)
    same = np.array(among.rules)[among.fold] == among.rule
    assert same.any()
    assert np.array_equal(among.crossed[0, same], alone.crossed[0, same])


def test_without_folds_the_first_rule_is_taken():
    pool = cohort("one")
    result = fitted(pool, Method("mean"), [StudyRule("max"), StudyRule()], folds=0)
    joined = StudyRule("max").values("probability", pool.predictions, pool.predictions, pool.study, pool.view)
    assert result.rule == 0
    assert np.array_equal(result.crossed[0], combine(joined, result.weights))


@pytest.mark.parametrize("methods", [[Method("best")], [Method("mean"), Method("greedy", {"rounds": 5}, guard=5.0)]])
@pytest.mark.parametrize("plenty", [100, 100_000])
def test_no_choice_of_a_rule_has_seen_the_subjects_it_is_scored_on(monkeypatch, methods, plenty):
    monkeypatch.setattr(honest, "PLENTY", plenty)
    pool, offered = cohort("one", studies=120), options("auto", "learned")
    fold = pool.groups % 4
    monkeypatch.setattr(honest, "assign_folds", lambda *_: fold)
    out, rules = fold == 2, rules_of(pool, offered)
    flipped = np.where(out[:, None], 1 - pool.targets, pool.targets)
    before, after = (
        fit(methods, pool.predictions, targets, pool.groups, folds=4, rules=rules)
        for targets in (pool.targets, flipped)
    )
    assert np.array_equal(before.crossed[0, out], after.crossed[0, out])
    assert before.rules[2] == after.rules[2]
    assert before.rules != after.rules  # the others did see them
    assert not np.array_equal(before.crossed[0, ~out], after.crossed[0, ~out])


def test_where_rules_do_nothing_the_cross_fitted_score_is_no_better_than_chance():
    rng = np.random.default_rng(0)
    targets = (rng.random((600, 6)) < 0.1).astype(np.int8)
    scores = rng.random((3, 600, 6)).astype(np.float32)
    study = np.arange(600) // 2
    pool = Pool(["a", "b", "c"], study, scores, targets, study, [], study=study, view=np.full(600, "PA"))
    result = fitted(pool, [Method("mean"), Method("greedy")], options("auto", "learned"))
    assert np.nanmean([honest.metrics.macro(a) for a in _ap(result.crossed, targets)]) == pytest.approx(0.1, abs=0.03)


def _ap(systems, targets):
    from cxrlt_ray.selection.average_precision import precisions

    return precisions(np.asarray(systems, np.float32), targets)


def test_one_version_of_the_predictions_is_held_at_a_time():
    pool, alive = cohort("twice", studies=60), []

    def version(predictions):
        assert sum(reference() is not None for reference in alive) == 0
        values = predictions * 1
        alive.append(weakref.ref(values))
        return values

    gc.disable()  # what is only freed when collected would pile up
    try:
        methods = [Method("mean"), Method("greedy", {"rounds": 3}, guard="auto"), Method("best", members=1)]
        fit(methods, pool.predictions, pool.targets, pool.groups, rules=[version] * 4)
    finally:
        gc.enable()
    assert len(alive) == 5  # each once, and the one taken once more


def test_one_rule_that_changes_nothing_is_no_rule():
    pool = cohort("twice")
    plain = fit([Method("mean"), Method("best")], pool.predictions, pool.targets, pool.groups)
    ruled = fit([Method("mean"), Method("best")], pool.predictions, pool.targets, pool.groups, rules=[as_given])
    assert np.array_equal(plain.crossed, ruled.crossed)
    assert (plain.rule, plain.rules) == (0, (0,) * 5)


# ---------------------------------------------------------------- in an ensemble


def test_an_ensemble_tells_its_rule_keeps_it_and_applies_it(capsys):
    pool = cohort("frontal")
    file = EnsembleFile(selector="mean", aggregation="mean", views="learned", space="logit")
    best, mean, row = compare(file, "mine", pool, seed=0)
    printed = capsys.readouterr().out
    assert f"Chosen by cross-fitting: {row.rule} (so do " in printed
    assert (best.rule, mean.rule) == (StudyRule(), StudyRule())
    applied_file = as_applied(file, row)
    assert applied_file["aggregation"] == "mean"
    assert applied_file["views"]["PA"] > applied_file["views"]["LATERAL"]
    again = applied("logit", row.rule, pool.predictions, pool.predictions, row.weights, pool.study, pool.view)
    np.testing.assert_allclose(again, row.optimistic, atol=1e-6)
    assert EnsembleFile(
        **{**file.model_dump(), "aggregation": applied_file["aggregation"], "views": applied_file["views"]}
    )


def test_without_studies_of_several_images_nothing_is_learned(capsys):
    pool = cohort("twice")
    pool = Pool(**{**pool.__dict__, "study": np.arange(len(pool.study))})
    row = compare(EnsembleFile(selector="mean", aggregation="auto"), "mine", pool, seed=0)[-1]
    assert row.rule == StudyRule()
    assert "No study has two validation images: each image by itself" in capsys.readouterr().out


def test_images_that_lack_scores_take_those_of_their_study():
    pool = cohort("twice", studies=20)
    predictions = pool.predictions.copy()
    predictions[:, [3, 4, 5]] = np.nan  # a lateral, and a whole study
    weights = np.full((2, 4), 0.5)
    inputs = (predictions, pool.predictions, weights, pool.study, pool.view)
    for how in HOW:
        scores = applied("probability", StudyRule(how), *inputs)
        assert np.isfinite(scores[3]).all()
        assert np.array_equal(scores[3], scores[2])
        assert np.isnan(scores[4:6]).all()
    assert np.isnan(applied("probability", StudyRule(), *inputs)[3]).all()


def test_stated_weights_are_used_as_they_are(capsys):
    pool = cohort("frontal")
    stated = {"PA": 2.0, "AP": 2.0, "LATERAL": 1.0}
    row = compare(EnsembleFile(selector="mean", aggregation="mean", views=stated, tta="on"), "f", pool, seed=0)[-1]
    expected = by_study(pool.predictions, pool.study, np.where(pool.view == "PA", 2.0, 1.0)).mean(axis=0)
    np.testing.assert_allclose(row.optimistic, expected, atol=1e-6)
    np.testing.assert_allclose(row.crossed[0], expected, atol=1e-6)
    assert "Chosen by" not in capsys.readouterr().out
    assert views.AUTO not in (row.rule.how, row.rule.views)
