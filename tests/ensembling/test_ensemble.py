"""The commands ensemble and predict as Python calls them: a request in, an ensemble on disk and its scores out."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from drawn_run import FINDINGS, make_tested_run, predictable

from cxrlt_ray import ensemble, evaluate, predict
from cxrlt_ray.ensembling import stored
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.store import Run


@pytest.fixture
def run(tmp_path) -> Run:
    """The drawn run on disk, under tmp_path/r; its validation images stand for test images too."""
    return make_tested_run(tmp_path)


@pytest.fixture
def request_of(run, tmp_path):
    def request(**options) -> ensemble.EnsembleRequest:
        return ensemble.EnsembleRequest(storage=str(tmp_path), run="r", rounds=20, **options)

    return request


def test_a_request_leaves_an_ensemble_and_gives_its_scores(request_of, tmp_path, capsys):
    stacked = ensemble.run(request_of(select="greedy", zip=True))
    assert stacked.name == "greedy"
    assert stacked.comparison.systems == ("best trial T0000", "mean of 3 trials", "greedy ensemble")
    assert list(stacked.comparison.sets) == ["optimistic", "cross_fitted", "test"]
    score = stacked.comparison.sets["cross_fitted"].systems["greedy ensemble"]
    assert 0 < score.map.low <= score.map.value <= score.map.high < 1
    assert set(score.ap) == set(FINDINGS)
    folder = tmp_path / "r" / "ensembles" / "greedy"
    assert {path.name for path in folder.iterdir()} == {
        *("ensemble.json", "weights.csv", "predictions", "predictions.parquet", "submission.csv", "submission.zip")
    }
    content = json.loads((folder / "ensemble.json").read_text())
    assert content["scores"]["systems"]["greedy ensemble"]["cross_fitted"]["map"] == score.map.value
    assert f"{score.map.value:.3f}".removeprefix("0") in capsys.readouterr().out


def test_scores_of_ensemble_json_have_the_keys_that_they_had(request_of):
    stacked = ensemble.run(request_of(select="mean"))
    scores = stored.load(f"{stacked.store.uri}/ensemble.json").record.scores
    assert list(scores) == ["systems", "gains", "prevalence", "groups", "images"]
    system = scores["systems"]["mean ensemble"]["test"]
    assert list(system) == ["map", "low", "high", "many_images", "head", "medium", "tail", "intervals", "ap"]
    assert set(system["intervals"]) == {"head", "medium", "tail"}
    assert list(scores["gains"]["test"]) == ["best trial T0000", "mean of 3 trials"]
    assert set(scores["gains"]["test"]["best trial T0000"]) == {"map", "low", "high"}
    assert scores["images"]["test"] == 600


def test_a_mean_whose_members_have_not_all_scored_is_not_scored(request_of, run, capsys):
    for trial in run.trials()[1:]:
        (trial.store.local / "predictions" / "test.parquet").unlink()
    stacked = ensemble.run(request_of(select="best"))
    scored = stacked.comparison.sets["test"]
    assert list(scored.systems) == ["best trial T0000", "best ensemble"]
    assert list(scored.gains) == ["best trial T0000"]
    assert "not scored" in capsys.readouterr().out


def test_tables_are_stacked_by_a_request_too(run, tmp_path):
    paths = []
    for trial in run.trials():
        paths.append(str(tmp_path / f"{trial.name}.csv"))
        trial.predictions().to_csv(paths[-1])
    labels = run.manifest().of_split("val").table[["image_id", "subject_id", *FINDINGS]]
    labels.to_csv(tmp_path / "labels.csv", index=False)
    request = ensemble.EnsembleRequest(
        tables=paths, targets=str(tmp_path / "labels.csv"), select="mean", out=str(tmp_path / "out"), rounds=20
    )
    stacked = ensemble.run(request)
    assert stacked.comparison.systems[1:] == ("mean of 3 members", "mean ensemble")
    assert set(stacked.comparison.sets) == {"optimistic", "cross_fitted"}
    assert (tmp_path / "out" / "report.json").exists()


def test_a_stored_ensemble_is_loaded_with_its_members_and_refused_where_they_changed(request_of, run):
    stacked = ensemble.run(request_of(select="mean"))
    uri = f"{stacked.store.uri}/ensemble.json"
    loaded = stored.load(uri)
    assert [trial.name for trial in loaded.trials] == ["T0000", "T0001", "T0002"]
    np.testing.assert_allclose(loaded.weights, np.full((3, 3), 1 / 3))
    assert loaded.tta == [True, False, False]
    folder = run.trials()[0].store.local / "fold-0"
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CxrltError, match=r"T0000/fold-0 changed since .*ensemble\.json was made: select anew"):
        stored.load(uri)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(CxrltError, match=r"T0000/fold-0, a member of .* is gone: select anew"):
        stored.load(uri)


def test_predict_scores_new_images_by_a_request(request_of, run, tmp_path, monkeypatch):
    stacked = ensemble.run(request_of(select="mean"))
    data = tmp_path / "new"
    table, scores = predictable(run, data, monkeypatch)
    out = tmp_path / "out"
    request = predict.PredictRequest(ensemble=f"{stacked.store.uri}/ensemble.json", data=str(data), out=str(out))
    predictions = predict.run(request)
    assert predictions.image_id.tolist() == table["image_id"].tolist()
    np.testing.assert_allclose(predictions.probabilities, scores.mean(axis=1), atol=1e-6)
    assert predictions.split == "new"
    assert {"predictions.parquet", "submission.csv"} <= {path.name for path in out.iterdir()}
    with pytest.raises(UsageError, match=r"has no images of split nope\."):
        predict.run(request.model_copy(update={"split": "nope"}))


def test_no_submission_of_a_former_ensemble_stays_beside_the_new_one(request_of, tmp_path):
    folder = tmp_path / "r" / "ensembles" / "greedy"
    ensemble.run(request_of(select="greedy", zip=True))
    ensemble.run(request_of(select="greedy"))
    assert (folder / "submission.csv").exists()
    assert not (folder / "submission.zip").exists()
    ensemble.run(request_of(select="greedy", split="holdout"))  # the data has none
    assert {path.name for path in folder.iterdir()} == {"ensemble.json", "weights.csv", "predictions"}


def test_the_next_command_scores_the_submission_though_the_data_is_not_read_again(request_of, capsys):
    stacked = ensemble.run(request_of(select="mean", zip=True))  # of data that is not there any more
    printed = capsys.readouterr().out
    assert re.search(r"Left in .*: ensemble\.json, .*submission\.csv, submission\.zip$", printed, re.MULTILINE)
    (words,) = re.findall(r"^Next: python -m cxrlt_ray\.evaluate (.*)$", printed, re.MULTILINE)
    scores = evaluate.run(evaluate.EvaluateRequest(submission=words, rounds=20))
    assert scores.scores["map"] == pytest.approx(stacked.comparison.sets["test"].systems["mean ensemble"].map.value)


def test_another_sites_shards_are_kept_beside_the_run_wherever_it_was_moved(request_of, run, tmp_path, monkeypatch):
    ensemble.run(request_of(select="mean"))
    images = run.manifest().of_split("test")
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "r", tmp_path / "moved" / "r")
    asked = []

    def score_site(loaded, folder, name, images, storage, *more):
        asked.append(storage)
        return np.full((len(images.table), 3), 0.5)

    monkeypatch.setattr("cxrlt_ray.data.joining.read_site", lambda *_: (images, ()))
    monkeypatch.setattr("cxrlt_ray.ensembling.new_images.score_site", score_site)
    folder = str(tmp_path / "moved" / "r" / "ensembles" / "mean")
    evaluate.run(evaluate.EvaluateRequest(submission=folder, external=["nih=."], rounds=20))
    assert asked == [str(tmp_path / "moved")]
