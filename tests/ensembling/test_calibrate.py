"""`ensemble --calibrate --thresholds` and `predict --calibrate`: what is kept, applied, printed and refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from drawn_run import FINDINGS, make_tested_run, predictable, write_predictions
from sklearn.metrics import average_precision_score

from cxrlt_ray import cli, ensemble, evaluate, predict
from cxrlt_ray.ensembling import stored
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation.calibration import Calibration
from cxrlt_ray.runs.ensemble_record import EnsembleRecord


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two ensembles of the same members: their run, the plain one's folder, the calibrated one's, what it said."""
    folder = tmp_path_factory.mktemp("made")
    run = make_tested_run(folder)
    for trial in run.trials():  # planted: their logits x 3, + 1
        for name in trial.store.list("predictions"):
            split = name.removesuffix(".parquet")
            frame = trial.predictions(split)
            logits = np.log(frame / (1 - frame))
            write_predictions(trial.store, frame.index, 1 / (1 + np.exp(-3 * logits - 1)), split)
    options = {"storage": str(folder), "run": "r", "rounds": 40, "select": "mean"}
    plain = ensemble.run(ensemble.EnsembleRequest(**options))
    kept = {path.name: path.read_bytes() for path in plain.store.local.iterdir() if path.is_file()}
    (folder / "critical.yaml").write_text("findings: [nodule]\n")
    aims = ["f1", "sensitivity=0.9", "critical=0.1"]
    request = ensemble.EnsembleRequest(
        **options, calibrate=True, thresholds=aims, critical=str(folder / "critical.yaml"), zip=True
    )
    return run, kept, ensemble.run(request), folder


def test_calibrated_test_scores_rank_as_before_and_are_nearer_the_truth(made):
    run, kept, stacked, folder = made
    (folder / "plain.parquet").write_bytes(kept["predictions.parquet"])
    before = pd.read_parquet(folder / "plain.parquet").set_index("image_id")
    after = pd.read_parquet(f"{stacked.store.uri}/predictions.parquet").set_index("image_id")
    submitted = pd.read_csv(f"{stacked.store.uri}/submission.csv").set_index("dicom_id")
    pd.testing.assert_frame_equal(after.astype(float), submitted.loc[after.index], atol=1e-6, check_names=False)
    table = run.manifest().of_split("test").table.set_index("image_id").loc[after.index]
    for finding in FINDINGS:
        labels = table[finding].to_numpy(int)
        same = [average_precision_score(labels, frame[finding]) for frame in (before, submitted.loc[after.index])]
        assert same[0] == pytest.approx(same[1], abs=1e-9)
    for where in ("cross_fitted", "test"):
        change = stacked.probabilities.calibrated[where].change.mean
        assert change.differences["log_loss"].high < 0, where
        assert change.after.ece.value < change.before.ece.value
    assert stacked.comparison.sets["test"].systems["mean ensemble"].map.value == pytest.approx(
        json.loads(kept["ensemble.json"])["scores"]["systems"]["mean ensemble"]["test"]["map"]
    )


def test_ensemble_json_keeps_the_calibration_and_files_without_one_load(made):
    _, kept, stacked, _ = made
    record = stored.load(f"{stacked.store.uri}/ensemble.json").record
    assert record.calibration == stacked.probabilities.calibration
    assert set(record.calibration.findings) == set(FINDINGS)
    old = json.loads(kept["ensemble.json"])
    assert old.pop("calibration") is None
    assert EnsembleRecord.parse(old, "ensemble.json").calibration is None
    content = json.loads((stacked.store.local / "ensemble.json").read_text())
    content["calibration"]["findings"]["Mass"]["map"]["a"] = -1.0
    with pytest.raises(CxrltError, match=r"calibration\.findings\.Mass\.map"):
        EnsembleRecord.parse(content, "ensemble.json")
    content["calibration"]["version"] = 2
    with pytest.raises(CxrltError, match=r"calibration\.version"):
        EnsembleRecord.parse(content, "ensemble.json")


def test_thresholds_stand_in_a_table_by_aim_and_set_and_hold_for_the_scores_written(made):
    run, _, stacked, _ = made
    table = pd.read_csv(f"{stacked.store.uri}/thresholds.csv")
    assert table["aim"].unique().tolist() == ["f1", "sensitivity=0.9", "critical=0.1"]
    assert table.loc[table["aim"] == "critical=0.1", "finding"].unique().tolist() == ["Nodule"]
    assert table["set"].unique().tolist() == ["cross_fitted", "test"]
    submitted = pd.read_csv(f"{stacked.store.uri}/submission.csv").set_index("dicom_id")
    labels = run.manifest().of_split("test").table.set_index("image_id").loc[submitted.index]
    for row in table[table["set"] == "test"].itertuples():
        called, positive = submitted[row.finding] >= row.threshold, labels[row.finding] == 1
        assert row.sensitivity == pytest.approx((called & positive).sum() / positive.sum())
        assert row.false_alarms_per_1000 == pytest.approx(1000 * (called & ~positive).mean())
        assert row.sensitivity_low <= row.sensitivity <= row.sensitivity_high


def test_calibration_json_holds_curves_and_decisions_of_each_set(made):
    *_, stacked, _ = made
    content = json.loads((stacked.store.local / "calibration.json").read_text())
    assert content["version"] == 1
    assert list(content["sets"]) == ["cross_fitted", "test"]
    of_test, made_of_it = content["sets"]["test"], stacked.probabilities.calibrated["test"]
    assert of_test["change"]["mean"]["after"]["ece"]["value"] == made_of_it.change.mean.after.ece.value
    assert len(of_test["curves"]) == len(of_test["decisions"]) == 3
    assert of_test["curves"][0]["before"][0]["images"] == made_of_it.curves[0].before[0].images


def test_what_was_changed_and_left_is_printed(made, capsys, tmp_path):
    *_, folder = made
    words = ["--storage", str(folder), "--run", "r", "--rounds", "20", "--select", "best"]
    assert run_line(*words, "--calibrate", "--thresholds", "f1", "sensitivity=0.99") == 0
    printed = capsys.readouterr().out
    for text in ("after less before", "validation, cross-fitted, 600 images", "test, 600 images", "by chance"):
        assert text in printed
    assert "Methods chosen by cross-fitted log loss" in printed
    assert "sensitivity=0.99" in printed
    assert "too few positive subjects for this aim" in printed
    assert "calibration.json, thresholds.csv" in printed


def test_predict_applies_the_calibration_on_request_only(made, tmp_path, monkeypatch, capsys):
    run, kept, stacked, _ = made
    data = tmp_path / "new"
    _, scores = predictable(run, data, monkeypatch)
    uri = f"{stacked.store.uri}/ensemble.json"
    request = predict.PredictRequest(ensemble=uri, data=str(data), out=str(tmp_path / "out"))
    plain = predict.run(request).probabilities
    np.testing.assert_allclose(plain, scores.mean(axis=1), atol=1e-6)
    assert "which --calibrate applies" in capsys.readouterr().out
    calibrated = predict.run(request.model_copy(update={"calibrate": True})).probabilities
    np.testing.assert_allclose(calibrated, stacked.probabilities.calibration.apply(plain, FINDINGS), atol=1e-6)
    assert not np.allclose(calibrated, plain)
    without = stacked.store.local / "plain.json"
    without.write_bytes(kept["ensemble.json"])
    with pytest.raises(UsageError, match=r"plain\.json keeps no calibration: make .*--calibrate"):
        predict.run(request.model_copy(update={"ensemble": str(without), "calibrate": True}))


def tables(folder, findings=("Edema", "Mass"), images=200, **columns):
    """Labels and two members' tables in `folder`; columns: labels in place of those drawn."""
    rng = np.random.default_rng(0)
    ids = [f"i{n:03d}" for n in range(images)]
    targets = (rng.random((images, len(findings))) < 0.3).astype(int)
    labels = pd.DataFrame(dict(zip(findings, targets.T, strict=True)) | {"dicom_id": ids}).assign(**columns)
    if "subject_id" not in labels:
        labels["subject_id"] = np.arange(images) // 2
    labels.to_csv(folder / "labels.csv", index=False)
    for name in "ab":
        scores = 1 / (1 + np.exp(-(4 * targets + 2 * rng.normal(size=targets.shape))))
        pd.DataFrame({"dicom_id": ids, **dict(zip(findings, scores.T, strict=True))}).to_csv(
            folder / f"{name}.csv", index=False
        )
    return ["--from", "a.csv", "b.csv", "--targets", "labels.csv", "--rounds", "20", "--select", "mean"]


def run_line(*words):
    with pytest.raises(SystemExit) as ended:
        cli.run("ensemble", list(words))
    return ended.value.code


def test_tables_of_any_origin_are_calibrated_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*tables(tmp_path), "--apply", "a.csv", "b.csv"]
    assert run_line(*words, "--out", "plain") == 0
    assert run_line(*words, "--calibrate", "--thresholds", "f1") == 0
    assert "calibration.json, thresholds.csv" in capsys.readouterr().out
    report = json.loads((tmp_path / "ensemble" / "report.json").read_text())
    calibration = Calibration.model_validate(report["calibration"])
    for name in ("validation.csv", "predictions.csv"):
        before, after = (pd.read_csv(f"{folder}/{name}", index_col=0) for folder in ("plain", "ensemble"))
        np.testing.assert_allclose(calibration.apply(before.to_numpy(), list(before)), after, atol=1e-5)
    assert "calibration" not in json.loads((tmp_path / "plain" / "report.json").read_text())
    assert not (tmp_path / "plain" / "calibration.json").exists()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"Mass": 0}, "Left as they are (0 positives): Mass"),
        ({"Mass": [1] + [0] * 199}, "Left as they are (1 positive): Mass"),
    ],
)
def test_what_cannot_be_calibrated_is_left_and_named(tmp_path, monkeypatch, capsys, columns, said):
    monkeypatch.chdir(tmp_path)
    assert run_line(*tables(tmp_path, **columns), "--calibrate", "--thresholds", "f1", "sensitivity=0.9") == 0
    assert said in capsys.readouterr().out


def test_one_finding_and_equal_scores_are_no_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = tables(tmp_path, findings=("Mass",))
    for name in "ab":
        pd.read_csv(f"{name}.csv").assign(Mass=0.7).to_csv(f"{name}.csv", index=False)
    assert run_line(*words, "--calibrate", "--thresholds", "f1") == 0
    after = pd.read_csv("ensemble/validation.csv", index_col=0)["Mass"]
    assert after.nunique() == 1
    assert after.iloc[0] == pytest.approx(pd.read_csv("labels.csv")["Mass"].mean(), abs=0.02)


def test_wrong_aims_and_lists_are_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = tables(tmp_path)
    for more, message in {
        ("--thresholds", "recall=0.9"): "'recall=0.9' is no aim",
        ("--thresholds", "critical=0.05"): "none of the findings here is in critical.yaml",
        ("--critical", "mine.yaml"): "--critical goes with --thresholds critical=F",
        ("--thresholds", "critical=0.05", "--critical", "mine.yaml"): "mine.yaml cannot be read",
    }.items():
        assert run_line(*words, *more) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert "mAP" not in captured.out
    assert not (tmp_path / "ensemble").exists()


def test_another_sites_scores_are_calibrated_and_called_as_homes_are(made, monkeypatch):
    run, kept, stacked, folder = made
    (folder / "plain.parquet").write_bytes(kept["predictions.parquet"])
    raw = pd.read_parquet(folder / "plain.parquet").set_index("image_id")
    images = run.manifest().of_split("test")  # home poses as the site
    monkeypatch.setattr("cxrlt_ray.data.joining.read_site", lambda *_: (images, ()))
    scored = raw.loc[images.table["image_id"], list(FINDINGS)].to_numpy(float)
    monkeypatch.setattr("cxrlt_ray.ensembling.new_images.score_site", lambda *_: scored)
    request = {"submission": stacked.store.uri, "external": ["nih=."], "rounds": 20}
    found = pd.read_csv(f"{stacked.store.uri}/thresholds.csv").set_index(["aim", "set", "finding"])["sensitivity"]
    for drop in evaluate.run(evaluate.EvaluateRequest(**request, thresholds="f1")).sites[0].drops[1:]:
        for metric in ("ap", "bias", "fnr"):
            assert drop.site[metric].value == pytest.approx(drop.home[metric].value, abs=1e-4), metric
        assert drop.home["fnr"].value == pytest.approx(1 - found["f1", "test", drop.finding])
    drops = evaluate.run(evaluate.EvaluateRequest(**request, thresholds="critical=0.1")).sites[0].drops
    missed = {drop.finding: drop.home["fnr"].value for drop in drops}
    assert missed["Nodule"] == pytest.approx(1 - found["critical=0.1", "test", "Nodule"])
    assert np.isnan(missed["Mass"])  # an aim for critical findings alone
    with pytest.raises(UsageError, match=r"without thresholds of this aim \(it has those of f1, sensitivity=0.9, crit"):
        evaluate.run(evaluate.EvaluateRequest(**request, thresholds="sensitivity=0.8"))
