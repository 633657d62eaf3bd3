"""What an ensemble chooses among, and whether trials look under test-time augmentation."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from cxrlt_ray import ensemble, predict
from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.ensembling import pool, score
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs import cost
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.runs.records import RunRecord
from cxrlt_ray.runs.store import Run
from cxrlt_ray.selection.views import StudyRule
from cxrlt_ray.storage import Store

FINDINGS = ("Mass", "Nodule", "Edema")
CONFIG = {"backbone": "test_convnext", "resolution": 32, "epochs": 1, "pretrained": False, "tta": "flip"}
IMAGES = 600


@pytest.fixture
def made(tmp_path):
    """A run of three trials: looking twice helps T0000, harms T0001, and T0002 was never tried."""
    rng = np.random.default_rng(0)
    targets = (rng.random((IMAGES, 3)) < 0.2).astype(np.int8)
    table = pd.DataFrame([dict.fromkeys(META)] * IMAGES)
    table["image_id"] = [f"i{n:03d}" for n in range(IMAGES)]
    table["study_id"] = [f"s{n // 2:03d}" for n in range(IMAGES)]
    table["subject_id"] = [str(n // 4) for n in range(IMAGES)]
    table["view"], table["split"], table["path"] = "PA", "val", "x.jpg"
    table[list(FINDINGS)] = targets
    manifest = Manifest(table.astype(dict.fromkeys(FINDINGS, "Int8")), FINDINGS, "table", str(tmp_path))
    task = Task("mine", FINDINGS, "test")
    run = Run(Store(str(tmp_path / "r")), RunRecord(name="r", task=task, task_argument="auto"))
    for number, noise in enumerate([(1.5, 0.7), (1.0, 2.0), (1.0, None)]):
        name = f"T000{number}"
        store = run.store / "trials" / name
        trial = {"name": name, "state": "finished", "config": CONFIG, "findings": list(FINDINGS), "fingerprint": "f"}
        trial["val_map"] = 0.5
        for split, sd in zip(("val", "val-tta"), noise, strict=True):
            if sd is not None:
                logits = 2 * targets - 2 + rng.normal(0, sd, targets.shape)
                _write(store, table["image_id"], 1 / (1 + np.exp(-logits)), split)
        if noise[1] is not None:
            trial["tta"] = {"looks": 2, "val_map": 0.5, "price": 2.1}
        store.write("fold-0/model.json", b"{}")
        store.write("fold-0/model.safetensors", name.encode())
        store.write_json("trial.json", trial)
    return run, manifest


def _write(store, ids, scores, split, fingerprint="f"):
    predictions = Predictions(np.array(ids), np.asarray(scores), FINDINGS, split, fingerprint)
    predictions.write(store, f"predictions/{split}.parquet")


def gathered(made):
    return pool.gather(*made, made[0].trials())


def test_looks_that_help_are_taken_and_others_refused_each_with_its_price(made):
    told, plain = [], gathered(made)
    found = pool.under_tta(plain, "auto", say=told.append)
    assert found.tta == (True, False, False)
    assert told[0].startswith("T0000 TTA of 2 looks: +.")
    assert told[0].endswith("at 2.1 times the price: taken")
    assert "T0001 TTA of 2 looks: -." in told[1]
    assert told[1].endswith("refused")
    assert len(told) == 2
    looked = made[0].trials()[0].predictions("val-tta").loc[found.image_id].to_numpy()
    assert np.array_equal(found.predictions[0], looked)
    assert np.array_equal(found.predictions[1:], plain.predictions[1:])
    assert not np.array_equal(plain.predictions[0], looked)  # the pool that was given is as it was
    assert found.split_of(0, "test") == "test-tta"
    assert found.split_of(1, "test") == "test"
    gain = float(told[0].split(": ")[1].split()[0])
    assert gain == pytest.approx(macro(plain, looked) - macro(plain, plain.predictions[0]), abs=6e-4)


def macro(given, scores):
    return np.mean([average_precision_score(t, s) for t, s in zip(given.targets.T, scores.T, strict=True)])


def test_a_gain_within_one_standard_error_is_refused(made):
    trial = made[0].trials()[0]
    scores = trial.predictions()
    _write(trial.store, scores.index, scores.to_numpy() ** 0.5, "val-tta")  # the same order: no gain at all
    told = []
    assert pool.under_tta(gathered(made), "auto", say=told.append).tta == (False,) * 3
    assert "+.000 [+.000, +.000] at 2.1 times the price: refused" in told[0]


def test_on_takes_all_there_are_and_off_none(made):
    told, plain = [], gathered(made)
    assert pool.under_tta(plain, "on", say=told.append).tta == (True, True, False)
    assert told == ["Test-time augmentation: 2 of 3 trials look at an image several times; T0002 cannot"]
    assert pool.under_tta(plain, "off") is plain
    assert plain.split_of(0, "test") == "test"


def test_on_without_any_is_refused_with_the_way_to_it(made):
    for trial in made[0].trials()[:2]:
        (Path(trial.store.uri) / "predictions/val-tta.parquet").unlink()
    with pytest.raises(UsageError, match=r"which T0000, T0001, T0002 lack: sweep a space that has `tta`"):
        pool.under_tta(gathered(made), "on")
    assert pool.under_tta(gathered(made), "auto").tta == (False,) * 3


def test_a_trial_that_cannot_score_test_images_so_looks_plainly(made):
    run, _ = made
    shutil.rmtree(f"{run.store.uri}/trials/T0000/fold-0")
    told = []
    assert pool.under_tta(gathered(made), "auto", "test", say=told.append).tta == (False,) * 3
    assert told[0] == "T0000 looks plainly: its checkpoint was dropped, test images cannot be scored otherwise"
    store = run.store / "trials" / "T0000"
    _write(store, ["t0"], np.full((1, 3), 0.5), "test-tta")  # but it has scored them
    assert pool.under_tta(gathered(made), "auto", "test").tta == (True, False, False)
    assert pool.under_tta(gathered(made), "auto", None).tta == (True, False, False)


def test_predictions_that_do_not_fit_are_told_and_left(made):
    short, other = made[0].trials()[:2]
    frame = short.predictions("val-tta")
    _write(short.store, frame.index[:10], frame.to_numpy()[:10], "val-tta")
    _write(other.store, frame.index, frame.to_numpy(), "val-tta", fingerprint="another")
    told = []
    assert pool.under_tta(gathered(made), "auto", say=told.append).tta == (False,) * 3
    assert told[0] == "T0000 looks plainly: its predictions under test-time augmentation lack images"
    assert told[1].startswith("T0001 looks plainly: ")
    assert "made on another cohort" in told[1]


def test_looks_are_paid_for(made):
    trials = made[0].trials()
    plain = cost.gflops(trials)
    assert (plain > 0).all()
    assert np.allclose(cost.gflops(trials, (True, False, False)), plain * [2, 1, 1])


def test_test_images_are_scored_and_read_as_each_member_looks(made, monkeypatch):
    run, manifest = made
    images = manifest.table.iloc[:5].assign(image_id=[f"t{n}" for n in range(5)], split="test")
    asked = []

    def score_trials(store, shards, trials, images, split, tta):
        asked.append(([trial.name for trial in trials], split, list(tta), list(images["image_id"])))
        for k, (trial, flag) in enumerate(zip(trials, tta, strict=True)):
            _write(trial.store, images["image_id"], np.full((5, 3), 0.1 * (k + 1)), f"{split}-tta" if flag else split)

    monkeypatch.setattr(score, "score_trials", score_trials)
    monkeypatch.setattr("cxrlt_ray.cluster.start.start_ray", lambda address: None)
    monkeypatch.setattr(Run, "shards", lambda self: ())
    found = pool.under_tta(gathered(made), "auto", "test")
    members = np.array([True, False, True])
    for _ in range(2):
        scores = ensemble.score_split(run, found, members, images, "test", None)
        assert np.allclose(scores[0], 0.1)
        assert np.allclose(scores[2], 0.2)
    assert asked == [(["T0000", "T0002"], "test", [True, False], [f"t{n}" for n in range(5)])]  # once


def test_members_remember_how_they_look(made):
    found = pool.under_tta(gathered(made), "on")
    row = ensemble.compare(EnsembleFile(selector="mean"), "mean", found, seed=0)[-1]
    table = ensemble.weights_table(found, row.weights, FINDINGS).set_index("trial")
    assert table["looks"].to_dict() == {"T0000": 2, "T0001": 2, "T0002": 1}
    about = [ensemble._member(found, m, row.weights[m], FINDINGS) for m in range(3)]
    assert [member["tta"] for member in about] == [True, True, False]


def test_predict_looks_as_the_ensemble_did_and_joins_studies_by_its_rule(made, monkeypatch):
    run, manifest = made
    images = manifest.table.iloc[:6]
    trials = run.trials()[:2]
    weights = dict.fromkeys(FINDINGS, 0.5)
    members = [{"trial": t.name, "checkpoints": {}, "weights": weights, "tta": k == 0} for k, t in enumerate(trials)]
    about = {"members": members, "space": "rank", "task": {"findings": list(FINDINGS)}}
    scores = np.random.default_rng(0).random((6, 2, 3)).astype(np.float32)
    looks = []

    def scored(work, shards, members, images):
        looks.append([len(member.looks) for member in members])
        return pd.DataFrame({"scores": list(scores)}, index=pd.Index(images["image_id"]))

    monkeypatch.setattr(score, "score", scored)
    reference = np.stack([trials[0].predictions("val-tta").to_numpy(), trials[1].predictions("val").to_numpy()])
    for given, rule in (
        ({}, StudyRule("none")),
        ({"views": {"PA": 2.0}}, StudyRule("mean")),
        ({"aggregation": "max", "views": None}, StudyRule("max")),
    ):
        loaded = predict.Ensemble({**about, **given}, trials, np.full((2, 3), 0.5))
        found = predict.score(loaded, run.store, (), images)
        study = images["study_id"].to_numpy()
        expected = rule.values("rank", scores.transpose(1, 0, 2), reference, study, images["view"].to_numpy())
        np.testing.assert_allclose(found, expected.mean(axis=0), atol=1e-6)
    assert looks == [[2, 1]] * 3
    del members[1]["tta"]  # an ensemble of before test-time augmentation
    assert predict.Ensemble(about, trials, np.full((2, 3), 0.5)).tta == [True, False]
