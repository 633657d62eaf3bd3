"""A run's trials side by side: which can be chosen, on which images, with what is known of these."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_run import CONFIG, FINDINGS, make_run, write_predictions

from cxrlt_ray.ensembling.compare import compare
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile, load_ensemble
from cxrlt_ray.ensembling.pool import best_of_each, gather
from cxrlt_ray.ensembling.shortlist import foremost
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.store import Run


@pytest.fixture
def made(tmp_path):
    return make_run(tmp_path)


def test_images_keep_their_study_and_view(made):
    run, manifest = made
    pool = gather(run, manifest, run.trials())
    table = manifest.table.set_index("image_id").loc[pool.image_id]
    assert pool.study.tolist() == table["study_id"].tolist()
    assert pool.view.tolist() == table["view"].tolist()
    assert pool.costs is None


def test_the_rule_of_a_study_holds_for_a_runs_validation_images(made):
    run, manifest = made
    pool = gather(run, manifest, run.trials())
    joined = compare(EnsembleFile(selector="mean", aggregation="max"), "mine", pool, seed=0)[-1]
    first, second = joined.optimistic[0::2], joined.optimistic[1::2]  # two images a study
    np.testing.assert_array_equal(first, second)
    expected = pool.predictions.reshape(3, -1, 2, 3).max(axis=2).mean(axis=0)
    np.testing.assert_allclose(first, expected, atol=1e-6)


def test_members_are_taken_in_turn_from_each_findings_order_and_that_over_all():
    ap = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.7], [0.1, np.nan]])
    assert foremost(ap, 1).tolist() == [0]
    assert foremost(ap, 2).tolist() == [0, 2]
    assert foremost(ap, 3).tolist() == [0, 1, 2]


def test_of_a_grid_the_best_trial_of_each_value_is_chosen_among(made):
    run, _ = made
    trials = run.trials()
    for trial, (resolution, score) in zip(trials, ((32, 0.4), (48, 0.1), (32, 0.6)), strict=True):
        trial.record.config = trial.record.config.model_copy(update={"resolution": resolution})
        trial.record.score = score
    said = []
    assert [trial.name for trial in best_of_each(trials, "resolution", said.append)] == ["T0001", "T0002"]
    assert said == ["2 of 3 trials are chosen among: the best of each resolution"]
    trials[2].record.score = None  # one without a score is never the best
    assert [trial.name for trial in best_of_each(trials, "resolution", said.append)] == ["T0000", "T0001"]
    assert load_ensemble("team_e")[1].best_of_each == "resolution"


def test_what_is_no_parameter_of_trials_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("selector: mean\nbest_of_each: colour\n")
    with pytest.raises(UsageError, match=r"key 'best_of_each'.*no parameter of trials"):
        load_ensemble(str(path))


@pytest.mark.parametrize("foreign", ["images", "findings"])
def test_a_trial_copied_from_another_run_is_named_and_left_out(made, foreign):
    drawn, manifest = made
    run = Run(drawn.store, drawn.record.model_copy(update={"fingerprint": "f"}))
    store, ids = run.store / "trials" / "T0002", manifest.table["image_id"].to_numpy()
    trial = {"name": "T0002", "state": "finished", "config": CONFIG, "fingerprint": "f", "findings": FINDINGS}
    if foreign == "images":  # half of them are this run's too
        store.write_json("trial.json", trial | {"fingerprint": "g"})
        write_predictions(store, ids[:300], np.full((300, 3), 0.5), "val", "g")
    else:
        store.write_json("trial.json", trial | {"findings": FINDINGS[::-1]})
    said: list[str] = []
    pool = gather(run, manifest, run.trials(), said.append)
    assert pool.names == ["T0000", "T0001"]
    assert pool.image_id.tolist() == ids.tolist()
    (line,) = said
    assert line.startswith("Left out T0002: it was trained on other images, splits or findings")


def test_images_that_some_trial_has_not_scored_are_counted(made):
    run, manifest = made
    ids = manifest.table["image_id"].to_numpy()
    write_predictions(run.store / "trials" / "T0001", ids[5:], np.full((595, 3), 0.5), "val")
    said: list[str] = []
    assert gather(run, manifest, run.trials(), said.append).image_id.tolist() == ids[5:].tolist()
    assert said == ["Left out: 5 of 600 validation images, which some trials have not scored"]


def test_the_best_of_each_is_also_of_a_parameter_that_is_a_mapping(made):
    trials = made[0].trials()
    assert best_of_each(trials, "loss_settings", lambda line: None) == trials[:1]  # all score alike: the first
