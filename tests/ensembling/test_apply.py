"""An ensemble scores images with its members as they were chosen: augmented or plain, joined by its rule."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from drawn_run import FINDINGS, make_run, write_predictions

from cxrlt_ray.data.tasks import Task
from cxrlt_ray.ensembling import score
from cxrlt_ray.ensembling.apply import Ensemble, score_split
from cxrlt_ray.ensembling.pool import gather
from cxrlt_ray.ensembling.tta import under_tta
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.ensemble_record import EnsembleRecord
from cxrlt_ray.runs.store import Run
from cxrlt_ray.selection.views import StudyRule


@pytest.fixture
def made(tmp_path):
    return make_run(tmp_path)


def test_test_images_are_scored_and_read_as_each_member_looks(made, monkeypatch):
    run, manifest = made
    images = manifest.table.iloc[:5].assign(image_id=[f"t{n}" for n in range(5)], split="test")
    asked = []

    def score_trials(store, shards, trials, images, split, tta, track):
        asked.append(([trial.name for trial in trials], split, list(tta), list(images["image_id"])))
        for k, (trial, flag) in enumerate(zip(trials, tta, strict=True)):
            write_predictions(
                trial.store, images["image_id"], np.full((5, 3), 0.1 * (k + 1)), f"{split}-tta" if flag else split
            )

    monkeypatch.setattr(score, "score_trials", score_trials)
    monkeypatch.setattr("cxrlt_ray.cluster.start.start_ray", lambda address: None)
    monkeypatch.setattr(Run, "shards", lambda self: ())
    found = under_tta(gather(*made, made[0].trials()), "auto", "test")
    members = np.array([True, False, True])
    for _ in range(2):
        scores = score_split(run, found, members, images, "test", None)
        assert np.allclose(scores[0], 0.1)
        assert np.allclose(scores[2], 0.2)
    assert asked == [(["T0000", "T0002"], "test", [True, False], [f"t{n}" for n in range(5)])]  # once


def test_predict_looks_as_the_ensemble_did_and_joins_studies_by_its_rule(made, monkeypatch):
    run, manifest = made
    images = manifest.table.iloc[:6]
    trials = run.trials()[:2]
    weights = dict.fromkeys(FINDINGS, 0.5)
    members = [{"trial": t.name, "checkpoints": {}, "weights": weights, "tta": k == 0} for k, t in enumerate(trials)]
    content = {"version": 2, "members": members, "space": "rank", "task": Task("mine", FINDINGS)}
    scores = np.random.default_rng(0).random((6, 2, 3)).astype(np.float32)
    passes = []

    def scored(work, shards, members, images):
        passes.append([len(member.views) for member in members])
        return pd.DataFrame({"scores": list(scores)}, index=pd.Index(images["image_id"]))

    monkeypatch.setattr(score, "score", scored)
    reference = np.stack([trials[0].predictions("val-tta").to_numpy(), trials[1].predictions("val").to_numpy()])
    for given, rule in (
        ({}, StudyRule("none")),
        ({"views": {"PA": 2.0}}, StudyRule("mean")),
        ({"aggregation": "max", "views": None}, StudyRule("max")),
    ):
        ensemble = Ensemble(EnsembleRecord.parse({**content, **given}, "ensemble.json"), trials)
        found = ensemble.score(run.store, (), images)
        study = images["study_id"].to_numpy()
        expected = rule.values("rank", scores.transpose(1, 0, 2), reference, study, images["view"].to_numpy())
        np.testing.assert_allclose(found, expected.mean(axis=0), atol=1e-6)
    assert passes == [[2, 1]] * 3
    del members[1]["tta"]  # an ensemble of before test-time augmentation
    assert Ensemble(EnsembleRecord.parse(content, "ensemble.json"), trials).tta == [True, False]


class Empty:
    """Shards of a run all of whose test images are in quarantine."""

    size = 32

    def index(self):
        return pd.DataFrame({"file": []}, index=pd.Index([], name="image_id", dtype=object))


def test_a_split_of_which_no_image_can_be_decoded_is_told(made):
    run, manifest = made
    member = score.member(run.trials()[0])
    with pytest.raises(CxrltError, match="none of the 600 images to score could be decoded"):
        score.score(run.store / "scoring", (Empty(),), [member], manifest.table)
