"""Evaluating a submission: the cohort as a sweep reads it, the scores printed and left, the phantom told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scored_cohort import cohort, submit
from sklearn.metrics import average_precision_score

from cxrlt_ray import evaluate
from cxrlt_ray.data.manifest import COHORT
from cxrlt_ray.data.tasks import CHALLENGE, Task
from cxrlt_ray.ensembling import submission
from cxrlt_ray.errors import UsageError
from cxrlt_ray.storage import Store


def test_command_prints_scores_and_leaves_them_as_csv_and_json(tmp_path: Path, capsys):
    manifest = cohort(tmp_path / "data")
    test = manifest.of_split("test")
    path = submit(tmp_path, test.table["image_id"].tolist())
    for name in ("scores.csv", "scores.json"):
        evaluate.main(path, data=str(tmp_path / "data"), task="auto", rounds=20, out=str(tmp_path / name))
    printed = capsys.readouterr().out
    assert "39 images of 20 subjects" in printed
    assert "in no mean: Hernia" in printed
    table = pd.read_csv(tmp_path / "scores.csv").set_index("finding")
    content = json.loads((tmp_path / "scores.json").read_text())
    frame = pd.read_csv(path).set_index("dicom_id")
    known = test.table[test.table["Mass"].notna()]
    expected = average_precision_score(known["Mass"].astype(int), frame.loc[known["image_id"], "Mass"])
    assert table.loc["Mass", "ap"] == pytest.approx(expected)
    assert content["findings"]["Mass"]["ap"] == pytest.approx(expected)
    assert table.loc["Mass", "group"] == "head"


def test_scores_in_percent_are_told_and_scored_as_probabilities_are(tmp_path: Path, capsys):
    test = cohort(tmp_path / "data").of_split("test")
    path = submit(tmp_path, test.table["image_id"].tolist())
    frame = pd.read_csv(path, dtype={"dicom_id": str})
    frame.iloc[:, 1:] *= 100
    frame.to_csv(tmp_path / "percent.csv", index=False)
    plain, percent = (
        evaluate.run(evaluate.EvaluateRequest(submission=name, data=str(tmp_path / "data"), task="auto", rounds=20))
        for name in (path, str(tmp_path / "percent.csv"))
    )
    assert "are taken as percentages" in capsys.readouterr().out
    assert percent.scores["map"] == plain.scores["map"]
    assert percent.scores["ece"] == pytest.approx(plain.scores["ece"])
    with pytest.raises(UsageError, match="--scores takes probability, percent, logit, not 'odds'"):
        evaluate.main(path, data=str(tmp_path / "data"), scores="odds")


def test_command_scores_another_split_and_names_those_there_are(tmp_path: Path, capsys):
    manifest = cohort(tmp_path / "data")
    path = submit(tmp_path, manifest.of_split("val").table["image_id"].tolist())
    evaluate.main(path, data=str(tmp_path / "data"), task="auto", split="val", rounds=20)
    assert "40 images of 20 subjects" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no images of split other: give --split, one of train, val, test"):
        evaluate.main(path, data=str(tmp_path / "data"), task="auto", split="other")


def test_command_scores_the_split_that_a_sweep_carved(tmp_path: Path, capsys):
    from cxrlt_ray.data.cohort import read_cohort

    cohort(tmp_path / "data")
    path = tmp_path / "data" / "labels.csv"
    pd.read_csv(path).drop(columns="split").iloc[:-1].to_csv(path, index=False)
    carved = read_cohort(str(tmp_path / "data"), task="auto", seed=3).manifest.of_split("test")
    written = submit(tmp_path, carved.table["image_id"].tolist())
    evaluate.main(written, data=str(tmp_path / "data"), task="auto", seed=3, rounds=20)
    assert f"{len(carved.table)} images of" in capsys.readouterr().out


def test_arguments_that_do_not_fit_are_told_before_any_work(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--out s\.txt must end in \.csv or \.json"):
        evaluate.main("none.csv", data=str(tmp_path), out="s.txt")
    with pytest.raises(UsageError, match="--rounds must be at least 1"):
        evaluate.main("none.csv", data=str(tmp_path), rounds=0)


def test_phantom_is_told_and_the_teams_are_left_out(tmp_path: Path, capsys):
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.phantom import write_phantom

    write_phantom(tmp_path / "phantom", images=200, size=32, pictures=False, say=lambda line: None)
    data = str(tmp_path / "phantom")
    task = CHALLENGE["task1"]
    images = read_cohort(data, task="task1").manifest.of_split("test").table["image_id"].to_numpy()
    scores = np.random.default_rng(0).random((len(images), 40))
    submission.write(Store(str(tmp_path)), submission.build(images, scores, task.findings), task, images)
    evaluate.main(str(tmp_path / "submission.csv"), data=data, task="task1", rounds=20)
    printed = capsys.readouterr().out
    assert "This cohort is the phantom" in printed
    assert "arXiv" not in printed


def test_a_finding_is_as_rare_as_it_is_in_the_main_cohort_whatever_else_trains(tmp_path: Path):
    manifest = cohort(tmp_path / "data")
    others = pd.concat([manifest.table.assign(**{COHORT: "nih", "split": "train", "Mass": 0})] * 20)
    joined = replace(manifest, table=pd.concat([manifest.table, others], ignore_index=True))
    task = Task("auto", manifest.findings)
    assert evaluate._groups(joined, task) == evaluate._groups(manifest, task)
    assert evaluate._groups(manifest, task)[0] == "head"
