"""A run's trials side by side: which can be chosen, on which images, with what is known of these."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_run import make_run

from cxrlt_ray.ensembling.compare import compare
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile, load_ensemble
from cxrlt_ray.ensembling.pool import best_of_each, gather
from cxrlt_ray.ensembling.shortlist import foremost
from cxrlt_ray.errors import UsageError


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
