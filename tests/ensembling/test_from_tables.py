"""`ensemble --from`: predictions from anywhere, as a new user would try it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import cli, ensemble
from cxrlt_ray.errors import CxrltError, UsageError

FINDINGS = ["Edema", "Mass", "Hernia"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Labels and three members' tables, rows and columns shuffled, in the working directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 3)) < [0.4, 0.2, 0.1]).astype(int)
    ids = [f"i{n:03d}" for n in range(300)]
    labels = pd.DataFrame(
        {"dicom_id": ids, "subject_id": np.arange(300) // 2, **dict(zip(FINDINGS, targets.T, strict=True))}
    )
    labels.sample(frac=1, random_state=9).to_csv("labels.csv", index=False)
    for k, name in enumerate("abc"):
        scores = 1 / (1 + np.exp(-(targets * 2 + rng.normal(size=(300, 3)) * (0.7 + 0.5 * k) - 1)))
        table = pd.DataFrame({"Mass": scores[:, 1], "dicom_id": ids, "Hernia": scores[:, 2], "Edema": scores[:, 0]})
        table = table.sample(frac=1, random_state=k)
        table.to_parquet("b.parquet", index=False) if name == "b" else table.to_csv(f"{name}.csv", index=False)
    return tmp_path


def run(*args):
    with pytest.raises(SystemExit) as ended:
        cli.run("ensemble", ["--rounds", "20", *args])
    return ended.value.code


def test_three_tables_give_weights_report_and_combined_scores(folder, capsys):
    assert run("--from", "a.csv", "b.parquet", "c.csv", "--targets", "labels.csv", "--apply", "c.csv", "a.csv") == 2
    assert "--apply" in capsys.readouterr().err  # three members, two tables
    args = ["--from", "a.csv", "b.parquet", "c.csv", "--targets", "labels.csv"]
    assert run(*args, "--apply", "a.csv", "b.parquet", "c.csv") == 0
    told = capsys.readouterr().out
    assert "mAP of" in told
    assert "[bold]" not in told  # styles are styles, not letters
    assert "3 members, 300 images of 150 subjects, 3 findings" in told
    weights = pd.read_csv("ensemble/weights.csv", index_col="member")
    own = [f"{finding} (own)" for finding in FINDINGS]
    assert list(weights.columns) == [*FINDINGS, *own]
    assert np.allclose(weights[FINDINGS].sum(), 1, atol=1e-5)
    assert (weights[own].to_numpy() <= weights[FINDINGS].to_numpy() + 1e-6).all()
    assert weights.loc["a", FINDINGS].mean() > weights.loc["c", FINDINGS].mean()
    written = json.loads((folder / "ensemble/report.json").read_text())
    assert written["chosen"]["selector"] in (written["selector"], *written["fallback"])
    report = written["scores"]["systems"]["greedy ensemble"]
    assert report["optimistic"]["map"] >= report["cross_fitted"]["map"] - 0.02
    combined, validation = (
        pd.read_csv(f"ensemble/{name}.csv", index_col="image_id").sort_index() for name in ("predictions", "validation")
    )
    pd.testing.assert_frame_equal(combined, validation, atol=1e-6)  # the same images
    tables = [pd.read_csv("a.csv"), pd.read_parquet("b.parquet"), pd.read_csv("c.csv")]
    mean = sum(t.set_index("dicom_id").sort_index()["Mass"] * w for t, w in zip(tables, weights["Mass"], strict=True))
    assert np.allclose(combined["Mass"], mean, atol=1e-5)


def test_a_nan_and_a_missing_image_are_told_with_the_way_out(folder, capsys):
    broken = pd.read_csv("c.csv")
    broken.iloc[7, 0] = np.nan
    broken.to_csv("nan.csv", index=False)
    assert run("--from", "a.csv", "nan.csv", "--targets", "labels.csv") == 1
    assert "nan.csv: the score of finding 'Mass' in row 8 (line 9) is empty or nan" in capsys.readouterr().err
    pd.read_csv("c.csv").iloc[1:].to_csv("short.csv", index=False)
    assert run("--from", "a.csv", "short.csv", "--targets", "labels.csv") == 1
    assert "--drop-missing" in capsys.readouterr().err
    assert run("--from", "a.csv", "short.csv", "--targets", "labels.csv", "--drop-missing", "--select", "mean") == 0
    assert "299 images" in capsys.readouterr().out


def test_arrays_of_an_npz_do_as_well(folder, capsys):
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 2)) < 0.3).astype(np.int8)
    predictions = (targets + rng.normal(0, [[[0.5]], [[2.0]]], (2, 200, 2))).astype(np.float32)
    np.savez("mine.npz", predictions=1 / (1 + np.exp(-predictions)), targets=targets, groups=np.arange(200) // 2)
    assert run("--from", "mine.npz", "--select", "best") == 0
    assert "2 members, 200 images of 100 subjects, 2 findings" in capsys.readouterr().out
    assert pd.read_csv("ensemble/weights.csv", index_col=0).to_numpy().tolist() == [[1] * 4, [0] * 4]


def test_a_budget_holds_and_the_curve_is_shown(folder, capsys):
    (folder / "costs.csv").write_text("member,cost\nc,1\na,5\nb,1\n")
    (folder / "cheap.yaml").write_text("selector: frontier\nsettings: {budget: 2}\n")
    args = ["--from", "a.csv", "b.parquet", "c.csv", "--targets", "labels.csv", "--select", "cheap.yaml"]
    assert run(*args, "--costs", "costs.csv") == 0
    assert "cost an image, costs.csv" in capsys.readouterr().out
    assert pd.read_csv("ensemble/weights.csv", index_col=0).loc["a"].sum() == 0


def test_options_that_do_not_go_together_are_refused(folder):
    with pytest.raises(UsageError, match="--targets is missing"):
        ensemble.main(tables=["a.csv", "c.csv"])
    with pytest.raises(UsageError, match="--apply goes with --from"):
        ensemble.main(apply=["a.csv"])
    with pytest.raises(UsageError, match="does not weigh costs"):
        ensemble.main(tables=["a.csv", "c.csv"], targets="labels.csv", costs="costs.csv")
    (folder / "costs.csv").write_text("member,cost\na,1\n")
    with pytest.raises(CxrltError, match="has no cost of c"):
        ensemble.main(tables=["a.csv", "c.csv"], targets="labels.csv", costs="costs.csv", select="frontier")


def test_findings_and_members_in_doubt_are_told_by_name_and_no_interval_has_no_width(folder, capsys):
    labels = pd.read_csv("labels.csv").assign(Hernia=0)
    labels.to_csv("rare.csv", index=False)
    pd.read_csv("a.csv").to_csv("again.csv", index=False)
    assert run("--from", "a.csv", "c.csv", "again.csv", "--targets", "rare.csv", "--select", "mean") == 0
    printed = capsys.readouterr().out
    assert "fewer than 2 positives in findings 'Hernia':" in printed
    assert "identical members 'a' and 'again':" in printed
    assert "mean ensemble less mean of 3 members, validation cross-fitted: +0.000 -" in printed
    labels[:6].to_csv("few.csv", index=False)
    assert run("--from", "a.csv", "c.csv", "--targets", "few.csv", "--select", "mean") == 0
    assert "(too few)" in capsys.readouterr().out


def test_members_on_any_scale_give_the_same_ensemble(folder):
    plain = pd.read_csv("a.csv").set_index("dicom_id")
    (100 * plain).to_csv("percent.csv")
    (12 * np.log(plain / (1 - plain))).to_csv("logits.csv")
    scores = {}
    for name in ("a", "percent", "logits"):
        assert (
            run("--from", f"{name}.csv", "--targets", "labels.csv", "--select", "mean", "--apply", f"{name}.csv") == 0
        )
        report = json.loads((folder / "ensemble/report.json").read_text())
        scores[name] = report["scores"]["systems"]["mean ensemble"]["cross_fitted"]["map"]
        left = pd.read_csv("ensemble/predictions.csv", index_col="image_id").sort_index()
        for finding in FINDINGS:
            assert left[finding].rank().equals(plain.sort_index()[finding].rank().rename_axis("image_id"))
    assert scores["percent"] == scores["logits"] == scores["a"]


def test_scores_of_no_known_scale_are_refused_until_it_is_given(folder, capsys):
    grades = pd.read_csv("c.csv").set_index("dicom_id").mul(5).round()
    grades.to_csv("grades.csv")
    args = ["--from", "a.csv", "grades.csv", "--targets", "labels.csv", "--select", "mean"]
    assert run(*args) == 1
    assert "these may be percentages or logits: convert them to probabilities" in capsys.readouterr().err
    assert run(*args, "--scores", "probability", "percent") == 0
    assert "scores of 'grades', from 0" in capsys.readouterr().out
    assert run(*args, "--scores", "odds") == 2
    assert run(*args, "--scores", "logit", "logit", "logit") == 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("A,1\nc,2", r"has no cost of a \(near: 'A'\)"),
        ("a,much\nc,2", "the cost of a is no number"),
        ("a,1\nc,", "the cost of c is no number"),
        ("a,1\nc,-3", "the cost of c is no number"),
        ("a,inf\nc,3", "the cost of a is no number"),
        ("a,1\nc,0", "the cost of c is no number above 0"),
    ],
)
def test_costs_that_are_no_numbers_are_refused_with_the_member(folder, rows, said):
    (folder / "costs.csv").write_text(f"member,cost\n{rows}\n")
    with pytest.raises(CxrltError, match=said):
        ensemble.main(tables=["a.csv", "c.csv"], targets="labels.csv", costs="costs.csv", select="frontier")


def test_options_of_several_values_take_them_in_one_go_or_one_by_one():
    many = ("--from", "--apply")
    assert cli.spread(["--from", "a", "b", "--seed", "1", "--apply", "c"], many) == [
        *["--from", "a", "--from", "b", "--seed", "1", "--apply", "c"]
    ]
    assert cli.spread(["--from", "a", "--from", "b"], many) == ["--from", "a", "--from", "b"]


def test_one_image_is_weighed_but_not_explained(folder, capsys):
    pd.read_csv("labels.csv")[:1].assign(Edema=1).to_csv("labels.csv", index=False)
    args = ["--from", "a.csv", "c.csv", "--targets", "labels.csv", "--select", "mean"]
    assert run(*args) == 0
    assert run(*args, "--explain") == 1
    assert "--explain needs images of 2 subjects or more" in capsys.readouterr().err


def test_what_is_read_is_never_written_over(folder, capsys):
    before = (folder / "c.csv").read_bytes()
    for name in ("validation.csv", "weights.csv"):
        (folder / "c.csv").rename(name)
        assert run("--from", "a.csv", name, "--targets", "labels.csv", "--out", ".", "--select", "mean") == 2
        assert f"{name} would take the place" in capsys.readouterr().err
        assert (folder / name).read_bytes() == before
        (folder / name).rename("c.csv")
    (folder / "c.csv").rename("predictions.csv")  # which no --apply leaves
    assert run("--from", "a.csv", "predictions.csv", "--targets", "labels.csv", "--out", ".", "--select", "mean") == 0
    assert (folder / "predictions.csv").read_bytes() == before
    assert run("--from", "a.csv", "b.parquet", "--targets", "labels.csv", "--out", ".", "--select", "mean") == 0
    assert (folder / "predictions.csv").read_bytes() == before  # it is nobody's


def test_no_file_of_a_former_ensemble_stays_beside_the_new_one(folder):
    args = ["--from", "a.csv", "b.parquet", "c.csv", "--targets", "labels.csv", "--select", "mean"]
    assert run(*args, "--apply", "a.csv", "b.parquet", "c.csv", "--calibrate", "--thresholds", "f1") == 0
    (folder / "ensemble/notes.txt").write_text("mine")
    assert run(*args) == 0
    left = {path.name for path in (folder / "ensemble").iterdir()}
    assert left == {"weights.csv", "validation.csv", "report.json", "notes.txt"}
