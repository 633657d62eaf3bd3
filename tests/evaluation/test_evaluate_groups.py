"""`evaluate --by`: what is printed and left, from the cohort's own columns and from a table; bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scored_cohort import FINDINGS, cohort, submit
from sklearn.metrics import roc_auc_score

from cxrlt_ray import evaluate
from cxrlt_ray.errors import CxrltError, UsageError


@pytest.fixture
def scored(tmp_path: Path) -> dict[str, str]:
    """A cohort of 480 images with sexes, and a submission for its 160 test images."""
    cohort(tmp_path / "data", 480)
    path = tmp_path / "data" / "labels.csv"
    table = pd.read_csv(path, dtype={"image_id": str})
    table["sex"] = np.where(table["subject_id"].str[1:].astype(int) % 3 == 0, "Female", "Male")
    table.to_csv(path, index=False)
    ids = table.loc[table["split"] == "test", "image_id"].tolist()
    return {"path": submit(tmp_path, ids), "data": str(tmp_path / "data")}


def run(scored: dict[str, str], **options):
    request = {"submission": scored["path"], "data": scored["data"], "task": "auto", "rounds": 50}
    return evaluate.run(evaluate.EvaluateRequest(**request | options))


def test_scores_by_group_are_printed_and_left_beside_the_scores(scored, tmp_path, capsys):
    scores = run(scored, by="sex, view", min_group=5, out=str(tmp_path / "s.csv"))
    printed = capsys.readouterr().out
    assert "By sex, means over 2 of 3 findings" in printed
    assert "By view: no group is known, nothing to compare." in printed
    assert "corrected together (Holm" in printed
    table = pd.read_csv(tmp_path / "s.groups.csv")
    labels = pd.read_csv(Path(scored["data"]) / "labels.csv").set_index("image_id")
    submitted = pd.read_csv(scored["path"]).set_index("dicom_id")
    women = labels[(labels["split"] == "test") & (labels["sex"] == "Female") & labels["Mass"].notna()].index
    expected = roc_auc_score(labels.loc[women, "Mass"], submitted.loc[women, "Mass"])
    row = table[(table["group"] == "F") & (table["finding"] == "Mass")].iloc[0]
    assert row["auroc"] == pytest.approx(expected)
    assert set(table["finding"]) == {"mean", *FINDINGS}
    assert scores.by_group.suppressed == {"sex": 0, "view": 0}


def test_the_json_holds_groups_gaps_and_flags(scored, tmp_path):
    scores = run(scored, by="sex", min_group=5, out=str(tmp_path / "s.json"))
    content = json.loads((tmp_path / "s.json").read_text())["by_group"]
    assert content["tests"] == scores.by_group.tests > 0
    assert {row["group"] for row in content["groups"]} == {"F", "M"}
    assert {gap["metric"] for gap in content["gaps"]} == {"ap_even", "auroc", "fnr", "bias"}


def test_groups_of_a_table_and_those_too_small(scored, tmp_path, capsys):
    labels = pd.read_csv(Path(scored["data"]) / "labels.csv")
    sites = labels[["subject_id"]].drop_duplicates().reset_index(drop=True)
    sites["site"] = np.where(np.arange(len(sites)) % 2, "north", "south")
    sites.loc[len(sites) - 3 :, "site"] = "secret"
    sites.to_csv(tmp_path / "sites.csv", index=False)
    scores = run(scored, by="site", groups=str(tmp_path / "sites.csv"))
    printed = capsys.readouterr().out
    assert "By site: 1 group of fewer than 20 subjects not shown" in printed
    assert "secret" not in printed
    assert [group.group for group in scores.by_group.groups] == ["north", "south"]


def test_thresholds_are_taken_from_a_table(scored, tmp_path):
    pd.DataFrame({"finding": FINDINGS, "threshold": [0.0, 1.0, 0.5]}).to_csv(tmp_path / "t.csv", index=False)
    scores = run(scored, by="sex", min_group=5, thresholds=str(tmp_path / "t.csv"))
    rates = [group.cells[c].scores["fnr"].value for group in scores.by_group.groups for c in (0, 1)]
    assert rates == [0, 1, 0, 1]
    (tmp_path / "t.csv").write_text("finding,threshold\nMass,high\n")
    with pytest.raises(UsageError, match="lacks 2 finding"):
        run(scored, by="sex", thresholds=str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("finding,threshold\nMass,.2\nNodule,.1\nHernia,.1\nMass,.3\n")
    with pytest.raises(UsageError, match=r"row 4 \(line 5\): 'Mass' has another threshold in an earlier row"):
        run(scored, by="sex", thresholds=str(tmp_path / "t.csv"))
    with pytest.raises(UsageError, match="an ensemble keeps thresholds by aim: give its directory"):
        run(scored, by="sex", thresholds="f1")
    (tmp_path / "t.csv").write_text("finding,threshold\nMass,2\nNodule,.1\nHernia,.1\n")
    with pytest.raises(UsageError, match=r"row 1 \(line 2\): a threshold is a number from 0 to 1"):
        run(scored, by="sex", thresholds=str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": " , "}, "--by names no column"),
        ({"by": "sex", "min_group": 0}, "--min-group must be at least 1"),
        ({"groups": "t.csv"}, "--groups goes with --by"),
        ({"min_group": 5}, "--min-group goes with --by"),
        ({"thresholds": "t.csv"}, "--thresholds goes with --by or --external"),
        ({"by": "hospital"}, "--by hospital is none of the columns 'sex', 'age'"),
        ({"external": ["nih=."]}, "--external needs an ensemble"),
        ({"external": ["nih"]}, "--external is NAME=DIR"),
        ({"external": ["nih=.", "nih=."]}, "--external names nih twice"),
    ],
)
def test_options_that_do_not_fit_are_told(scored, options, message):
    with pytest.raises(UsageError, match=message):
        run(scored, **options)


def test_a_submission_without_data_and_a_damaged_ensemble_are_told(scored, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="--data is missing"):
        evaluate.main(scored["path"])
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble" / "ensemble.json").write_text("{")
    with pytest.raises(CxrltError, match="is not the JSON it should be"):
        evaluate.main(str(tmp_path / "ensemble"))
    with pytest.raises(UsageError, match="--data does not go with an ensemble"):
        evaluate.main(str(tmp_path / "ensemble"), data=scored["data"])
    monkeypatch.chdir(tmp_path / "ensemble")
    for path in ("ensemble.json", "./ensemble.json", str(tmp_path / "ensemble" / "ensemble.json"), ".", "../ensemble/"):
        with pytest.raises(CxrltError, match="is not the JSON it should be"):
            evaluate.main(path)
