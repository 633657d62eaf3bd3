"""The page's calibration, thresholds and groups: numbers of their sources, sentences where there are none."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.page.facts import Facts
from cxrlt_ray.page.probability_files import StoredDecisions
from cxrlt_ray.page.records import Interval
from cxrlt_ray.page.render import gathered, render
from cxrlt_ray.page.sections.thresholds import Benefit, _decision
from cxrlt_ray.runs.store import load_run

sys.path.insert(0, str(Path(__file__).parent))
from browser_page import drawn_run

FINDINGS = ("Effusion", "Mass", "Nodule")
ENDS = ("value", "low", "high")


def ensemble_of(folder, calibrate):
    from page import write_ensemble

    write_ensemble(folder, members=3, rounds=20, calibrate=calibrate)


@pytest.fixture(autouse=True)
def _no_counting(monkeypatch):
    monkeypatch.setattr("cxrlt_ray.page.costs._flops", lambda *_: 1e9)  # counting them imports torch


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run with an ensemble as it comes."""
    folder = tmp_path_factory.mktemp("plain")
    drawn_run(folder, trials=4, findings=FINDINGS)
    ensemble_of(folder, calibrate=False)
    return folder


@pytest.fixture(scope="module")
def calibrated(plain, tmp_path_factory):
    """The same with calibrated scores and thresholds."""
    folder = tmp_path_factory.mktemp("calibrated") / "s"
    shutil.copytree(plain, folder)
    ensemble_of(folder, calibrate=True)
    return folder


def report_of(folder):
    report = gathered(Facts(load_run(str(folder)), rounds=20))
    assert "please report it" not in render(report)
    return report


def section(folder, name):
    return report_of(folder).sections[name]


def with_column(folder, to, **columns):
    """A copy of the run with columns of its manifest set, by functions of the row's number."""
    shutil.copytree(folder, to)
    run = load_run(str(to))
    manifest = run.manifest()
    for name, value in columns.items():
        manifest.table[name] = [value(n) for n in range(len(manifest.table))]
    with run.store.place("manifest.parquet") as path:
        manifest.write(path)
    return to


def test_calibration_is_that_of_its_file(calibrated):
    shown = section(calibrated, "calibration")
    stored = json.loads((calibrated / "drawn/ensembles/best/calibration.json").read_text())["sets"]["test"]
    kept = json.loads((calibrated / "drawn/ensembles/best/ensemble.json").read_text())["calibration"]["findings"]
    rows = {row["name"]: row for row in shown["rows"]}
    assert set(rows) == set(FINDINGS)
    for name, row in rows.items():
        change = stored["change"]["findings"][name]
        for measure in ("log_loss", "brier", "ece"):
            assert row["before"][measure] == change["before"][measure]
            assert row["after"][measure] == change["after"][measure]
            assert row["change"][measure] == change["differences"][measure]
        assert row["method"] == kept[name]["method"]
    curves = {curve["finding"]: curve for curve in stored["curves"]}
    for name, row in rows.items():
        assert [p["rate"] for p in row["curve_after"]] == [b["rate"] for b in curves[name]["after"]]
    assert [row["name"].partition(",")[0] for row in shown["means"]] == ["Validation", "Test"]


def test_scores_as_they_are_are_judged_as_scikit_learn_does(plain):
    from sklearn.metrics import brier_score_loss, log_loss

    shown = section(plain, "calibration")
    images = Facts(load_run(str(plain))).images("test")
    assert not shown["calibrated"]
    assert "--calibrate" in shown["how"]
    for row in shown["rows"]:
        c = FINDINGS.index(row["name"])
        targets, scores = images.targets[:, c], images.probabilities[:, c].astype(float)
        assert row["before"]["log_loss"]["value"] == pytest.approx(log_loss(targets, scores), rel=1e-5)
        assert row["before"]["brier"]["value"] == pytest.approx(brier_score_loss(targets, scores), rel=1e-5)
        points = row["curve_before"]
        assert sum(p["images"] for p in points) == len(targets)
        rate = sum(p["images"] * p["rate"]["value"] for p in points) / len(targets)
        assert rate == pytest.approx(targets.mean())


def test_thresholds_are_those_of_their_table(calibrated):
    shown = section(calibrated, "thresholds")
    table = pd.read_csv(calibrated / "drawn/ensembles/best/thresholds.csv")
    table = table[table["set"] == "test"].set_index(["finding", "aim"])
    assert len(shown["rows"]) == len(table) == 2 * len(FINDINGS)
    for row in shown["rows"]:
        stored = table.loc[(row["finding"], row["aim"])]
        assert row["threshold"] == pytest.approx(stored["threshold"], rel=1e-12)
        for key, column in (("sensitivity", "sensitivity"), ("false_alarms", "false_alarms_per_1000")):
            own = [row[key][end] for end in ENDS]
            given = [stored[column], stored[f"{column}_low"], stored[f"{column}_high"]]
            assert np.array(own, float) == pytest.approx(np.array(given, float), nan_ok=True)
    assert {row["finding"] for row in shown["decisions"]} == set(FINDINGS)


def test_without_thresholds_the_page_says_how_to_get_them(plain):
    report = report_of(plain)
    command = "cxrlt_ray.ensemble --select best --run drawn --storage STORAGE --calibrate"
    assert f"{command} --thresholds f1 sensitivity=0.9" in report.absent["thresholds"]  # no finding here is critical
    assert command in report.sections["calibration"]["how"]


def test_a_calibrated_ensemble_without_its_file_is_not_said_to_be_as_it_was(calibrated, tmp_path):
    shutil.copytree(calibrated, tmp_path / "s")
    (tmp_path / "s/drawn/ensembles/best/calibration.json").unlink()
    about = section(tmp_path / "s", "calibration")["about"]
    assert "not calibrated" not in about
    assert "calibration.json" in about


def test_an_ensemble_made_anew_without_them_has_no_former_thresholds(calibrated, tmp_path):
    shutil.copytree(calibrated, tmp_path / "s")
    ensemble_of(tmp_path / "s", calibrate=False)
    report = report_of(tmp_path / "s")
    assert "thresholds" in report.absent
    assert report.sections["calibration"]["calibrated"] is False
    assert not (tmp_path / "s/drawn/ensembles/best/thresholds.csv").exists()


@pytest.mark.parametrize(("file", "lost"), [("calibration.json", "calibration"), ("thresholds.csv", "thresholds")])
def test_a_damaged_file_leaves_a_sentence_in_its_sections_place(calibrated, tmp_path, file, lost):
    shutil.copytree(calibrated, tmp_path / "s")
    (tmp_path / "s/drawn/ensembles/best" / file).write_text(
        '{"version": 1, "sets": 3}' if "json" in file else "a,b\n1,2\n"
    )
    report = report_of(tmp_path / "s")
    assert f"{file} is damaged" in report.faults[lost]
    assert {"findings", "groups"} <= set(report.sections)


def test_a_groups_mean_is_of_the_findings_that_all_groups_have(plain):
    from sklearn.metrics import roc_auc_score

    shown = section(plain, "groups")
    images = Facts(load_run(str(plain))).images("test")
    rows = {(row["by"], row["group"]): row for row in shown["rows"]}
    assert {by for by, _ in rows} == {"sex", "age", "view"}
    inside = {sex: (images.table["sex"] == sex).to_numpy() for sex in "FM"}
    counts = [
        min((images.targets[rows][:, c] == label).sum() for rows in inside.values() for label in (0, 1))
        for c in range(len(FINDINGS))
    ]
    common = [c for c, count in enumerate(counts) if count >= 10]  # two images of a subject at most
    gap = next(gap for gap in shown["gaps"] if (gap["by"], gap["score"]) == ("sex", "AUROC"))
    assert gap["finding"] == f"mean of {len(common)}"
    for sex, at in inside.items():
        aurocs = [roc_auc_score(images.targets[at, c], images.probabilities[at, c]) for c in common]
        assert rows["sex", sex]["auroc"]["value"] == pytest.approx(np.mean(aurocs))
        assert rows["sex", sex]["images"] == at.sum()


def test_small_groups_are_counted_but_not_named(plain, tmp_path):
    # rows n, n + 1 are of one subject, 240 rows a split: 5 subjects of each split
    folder = with_column(plain, tmp_path / "s", race=lambda n: "RARE ONE" if n % 240 < 10 else "WHITE")
    report = report_of(folder)
    assert "RARE ONE" not in render(report)
    assert "1 of race" in report.sections["groups"]["small"]


def test_columns_that_are_null_or_have_one_group_are_no_groups(plain, tmp_path):
    same = {"sex": lambda _: None, "age": lambda _: None, "view": lambda _: "PA"}
    assert "names no groups" in report_of(with_column(plain, tmp_path / "s", **same)).absent["groups"]


def test_a_group_that_is_served_worse_is_flagged(plain, tmp_path):
    folder = with_column(plain, tmp_path / "s")
    run = load_run(str(folder))
    images = Facts(run).images("test")
    worse = (images.table["sex"] == "F").to_numpy()
    scores = np.where(worse[:, None], 0.5 * images.probabilities[::-1], images.probabilities)
    facts = Facts(run, rounds=100)
    facts._images["test"] = dataclasses.replace(images, probabilities=scores)
    flags = gathered(facts).sections["groups"]["flags"]
    assert ("sex", "F") in {(flag["by"], flag["worse"]) for flag in flags if flag["score"] == "AUROC"}
    assert all(flag["p"] < 0.05 for flag in flags)


def test_of_many_images_whole_subjects_are_drawn(plain):
    images = Facts(load_run(str(plain))).images("test")
    part = images.some(100)
    assert 100 <= len(part.targets) <= 101
    assert (part.table.groupby("subject_id").size() == 2).all()
    assert (part.targets == images.targets[images.table["image_id"].isin(part.table["image_id"])]).all()
    assert images.some(10_000) is images


def test_a_mean_says_how_many_findings_it_is_of(plain, tmp_path):
    folder = with_column(plain, tmp_path / "s", Nodule=lambda _: 0)
    means = {row["score"]: row["findings"] for row in section(folder, "findings")["means"]}
    assert {means[name] for name in ("mAP", "mAUROC", "macro F1 at 0.5", "FNR at 0.5")} == {2}
    assert {means[name] for name in ("ECE", "micro F1 at 0.5")} == {3}


def test_cross_fitted_scores_of_a_calibrated_ensemble_are_said_to_be_as_they_were_before(calibrated, tmp_path):
    shutil.copytree(calibrated, tmp_path / "s")
    assert "calibration" not in section(tmp_path / "s", "findings")["about"]
    (tmp_path / "s/drawn/ensembles/best/predictions.parquet").unlink()
    report = report_of(tmp_path / "s")
    for name in ("findings", "groups", "errors"):
        assert "before calibration" in report.sections[name]["about"]


def test_probabilities_worth_acting_on_are_named_by_their_stretches():
    def benefit(probability, low):
        gain = Interval(value=0.1, low=low, high=0.2)
        return Benefit(probability=probability, net_benefit=gain, act_on_all=0.0, gain=gain)

    curve = StoredDecisions(
        finding="Mass",
        prevalence=0.1,
        points=[benefit(p, low).model_dump() for p, low in ((0.01, 0.1), (0.02, 0.1), (0.05, -0.1), (0.1, 0.1))],
    )
    assert _decision(curve).useful == "0.01 to 0.02, 0.1"


def test_a_groups_name_with_a_slash_is_no_path(plain, tmp_path):
    folder = with_column(plain, tmp_path / "s", race=lambda n: ("WHITE", "MULTIPLE RACE/ETHNICITY")[n // 2 % 2])
    names = {row["group"] for row in section(folder, "groups")["rows"] if row["by"] == "race"}
    assert names == {"WHITE", "MULTIPLE RACE/ETHNICITY"}
