"""Evaluating a submission: the challenge's scores, honest means and intervals, and the paper's teams where they fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.data.tasks import CHALLENGE, Task
from cxrlt_ray.ensembling import submission
from cxrlt_ray.ensembling.submission import aligned
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluate import main
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.published import not_comparable, published
from cxrlt_ray.evaluation.scores import SUMMARY, Scores, evaluate
from cxrlt_ray.reporting.scores import as_json, render
from cxrlt_ray.storage import Store

FINDINGS = ("Mass", "Nodule", "Hernia")
TASK = Task("auto", FINDINGS)


def shown(parts: list) -> str:
    """What a terminal of 80 columns shows."""
    from rich.console import Console

    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str))
    return capture.get()


def a_report(rounds: int = 50) -> Scores:
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 3)) < [0.5, 0.2, 0]).astype(np.int8)
    scores = np.clip(0.4 * targets + 0.6 * rng.random((60, 3)), 0, 1)
    return evaluate(targets, scores, FINDINGS, ["head", "medium", ""], np.arange(60) // 2, rounds)


def cohort(folder: Path, images: int = 120) -> Manifest:
    """A plain table of that many images; the last test image carries no label, Hernia is in train alone."""
    rng = np.random.default_rng(0)
    labels = (rng.random((images, 3)) < [0.5, 0.2, 0.1]).astype(object)
    table = pd.DataFrame(labels.astype(int), columns=FINDINGS).astype("Int64")
    table.insert(0, "image_id", [f"i{k:03d}" for k in range(images)])
    table.insert(1, "subject_id", [f"p{k // 2}" for k in range(images)])
    table["path"] = table["image_id"] + ".jpg"
    table["split"] = np.repeat(["train", "val", "test"], images // 3)
    table.loc[table["split"] == "test", "Hernia"] = 0
    table.loc[images - 1, list(FINDINGS)] = pd.NA
    folder.mkdir()
    table.to_csv(folder / "labels.csv", index=False)
    return Manifest(table.reindex(columns=[*META, *FINDINGS]), FINDINGS, "table", str(folder))


def submit(folder: Path, ids: list[str], name: str = "submission.csv") -> str:
    scores = np.random.default_rng(1).random((len(ids), 3))
    frame = submission.build(ids, scores, FINDINGS)
    frame.to_csv(folder / name, index=False)
    return str(folder / name)


def test_report_holds_the_challenges_scores():
    report = a_report()
    ap = report.per_finding["ap"]
    assert report.scores["map"] == pytest.approx(np.nanmean(ap))
    assert report.scores["head"] == pytest.approx(ap[0])
    assert report.scores["medium"] == pytest.approx(ap[1])
    assert np.isnan(report.scores["tail"])
    assert set(SUMMARY) < set(report.scores)
    assert (report.images, report.subjects) == (60, 30)
    np.testing.assert_allclose(report.per_finding["prevalence"], report.per_finding["positives"] / 60)


def test_intervals_are_those_of_subjects_drawn_whole_and_hold_the_score():
    report = a_report(rounds=300)
    for name in ("map", "mauroc"):
        low, high = report.intervals[name]
        assert low < report.scores[name] < high


def test_finding_without_positives_is_named_and_stands_in_no_mean():
    report = a_report()
    assert report.without_positives == ["Hernia"]
    assert np.isfinite(report.scores["map"])
    assert "Without positives here, and so in no mean: Hernia" in shown(render(report))


def test_report_as_json_has_null_for_what_has_no_value():
    content = json.loads(json.dumps(as_json(a_report()), allow_nan=False))
    assert content["findings"]["Hernia"]["ap"] is None
    assert content["scores"]["tail"] is None
    assert content["findings"]["Mass"]["group"] == "head"
    assert content["teams"] is None


def test_submission_is_scored_by_name_whatever_the_order_of_its_rows(tmp_path: Path):
    images = cohort(tmp_path / "data").of_split("test")
    frame = submission.read(submit(tmp_path, images.table["image_id"].tolist()))
    kept, scores = aligned(frame, TASK, images, "it")
    assert len(kept.table) == len(images.table) - 1  # the image without labels
    again = aligned(frame.sample(frac=1, random_state=0), TASK, images, "it")[1]
    np.testing.assert_array_equal(scores, again)
    without = aligned(frame.iloc[:-1], TASK, images, "it")[1]  # images without labels may be left out
    np.testing.assert_array_equal(scores, without)


def test_submission_with_missing_images_is_refused_with_the_faults(tmp_path: Path):
    images = cohort(tmp_path / "data").of_split("test")
    frame = submission.read(submit(tmp_path, images.table["image_id"].tolist()[2:]))
    with pytest.raises(CxrltError, match=r"^it is no submission to auto: 2 of the 39 image\(s\) to score have no row"):
        aligned(frame, TASK, images, "it")
    with pytest.raises(CxrltError, match=r"column\(s\) missing: dicom_id"):
        aligned(frame.drop(columns="dicom_id"), TASK, images, "it")


def test_images_without_labels_can_be_submitted_but_not_scored(tmp_path: Path):
    images = cohort(tmp_path / "data").of_split("test")
    frame = submission.read(submit(tmp_path, images.table["image_id"].tolist()))
    with pytest.raises(CxrltError, match="carry no label"):
        aligned(frame, TASK, images.where(images.table["Mass"].isna()), "it")


def test_command_prints_scores_and_leaves_them_as_csv_and_json(tmp_path: Path, capsys):
    manifest = cohort(tmp_path / "data")
    test = manifest.of_split("test")
    path = submit(tmp_path, test.table["image_id"].tolist())
    for name in ("scores.csv", "scores.json"):
        main(path, data=str(tmp_path / "data"), task="auto", rounds=20, out=str(tmp_path / name))
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


def test_command_scores_another_split_and_names_those_there_are(tmp_path: Path, capsys):
    manifest = cohort(tmp_path / "data")
    path = submit(tmp_path, manifest.of_split("val").table["image_id"].tolist())
    main(path, data=str(tmp_path / "data"), task="auto", split="val", rounds=20)
    assert "40 images of 20 subjects" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no images of split other: give --split, one of train, val, test"):
        main(path, data=str(tmp_path / "data"), task="auto", split="other")


def test_command_scores_the_split_that_a_sweep_carved(tmp_path: Path, capsys):
    from cxrlt_ray.data.cohort import read_cohort

    cohort(tmp_path / "data")
    path = tmp_path / "data" / "labels.csv"
    pd.read_csv(path).drop(columns="split").iloc[:-1].to_csv(path, index=False)
    carved = read_cohort(str(tmp_path / "data"), task="auto", seed=3).manifest.of_split("test")
    written = submit(tmp_path, carved.table["image_id"].tolist())
    main(written, data=str(tmp_path / "data"), task="auto", seed=3, rounds=20)
    assert f"{len(carved.table)} images of" in capsys.readouterr().out


def test_arguments_that_do_not_fit_are_told_before_any_work(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--out s\.txt must end in \.csv or \.json"):
        main("none.csv", data=str(tmp_path), out="s.txt")
    with pytest.raises(UsageError, match="--rounds must be at least 1"):
        main("none.csv", data=str(tmp_path), rounds=0)


@pytest.mark.parametrize("name", CHALLENGE)
def test_published_ap_of_each_team_averages_to_its_published_map(name):
    task = CHALLENGE[name]
    paper = published(task)
    assert paper is not None
    for team in paper.teams:
        assert len(paper.ap[team]) == len(task.findings)
        if (name, team) not in {("task3", "H"), ("task3", "I")}:  # the paper's own slips
            assert paper.ap[team].mean() == pytest.approx(paper.scores["map"][team], abs=0.0015)
    assert paper.teams == {"task1": list("ABCD"), "task2": list("CAEF"), "task3": list("GHI")}[name]


def test_published_ap_stands_in_the_tasks_own_order():
    paper = published(CHALLENGE["task2"])
    assert paper.ap["C"][CHALLENGE["task2"].findings.index("Normal")] == 0.726
    assert published(CHALLENGE["task1"]).ap["A"][0] == 0.103  # Adenopathy
    assert published(TASK) is None


def test_published_groups_are_means_of_the_published_findings():
    # the paper's groups hold one finding fewer than ours; head is the same nine
    paper = published(CHALLENGE["task1"])
    head = ("Atelectasis", "Cardiomegaly", "Edema", "Enlarged Cardiomediastinum", "Lung Opacity", "Normal")
    head += ("Pleural Effusion", "Pneumonia", "Support Devices")
    kinds = ["head" if name in head else "tail" for name in CHALLENGE["task1"].findings]
    for team in paper.teams:
        means = metrics.by_rarity(paper.ap[team], kinds)
        assert means["head"] == pytest.approx(paper.scores["head"][team], abs=0.002)


def test_teams_stand_beside_the_releases_test_set_only():
    task = CHALLENGE["task1"]
    assert not_comparable(task, 78_946, phantom=False) is None
    assert "phantom" in not_comparable(task, 78_946, phantom=True)
    assert "78,946 test images of task1, not on these 39,293" in not_comparable(task, 39_293, phantom=False)
    assert not_comparable(CHALLENGE["task2"], 406, phantom=False) is None


def test_teams_are_shown_in_the_summary_and_per_finding():
    task = CHALLENGE["task3"]
    targets = np.eye(10, 5, dtype=np.int8)
    report = evaluate(targets, np.full((10, 5), 0.3), task.findings, [""] * 5, np.arange(10), 20)
    text = shown(render(report, published(task), "greedy"))
    assert "arXiv:2506.07984" in text
    (row,) = [line for line in text.splitlines() if "Scoliosis" in line and "0.205" in line]
    assert row.split() == ["Scoliosis", "0.100", "0.205", "0.158", "0.036", "-0.105"]
    (row,) = [line for line in text.splitlines() if "mAUROC" in line]
    assert "0.741" in row
    assert as_json(report, published(task))["teams"]["map"]["G"] == 0.129


def test_every_table_of_task_1_fits_a_terminal_of_80_columns():
    task = CHALLENGE["task1"]
    rng = np.random.default_rng(0)
    targets = (rng.random((400, 40)) < 0.1).astype(np.int8)
    report = evaluate(targets, rng.random((400, 40)), task.findings, ["medium"] * 40, np.arange(400), 2)
    report.per_finding["positives"][:] = 86_079
    text = shown(render(report, published(task)))
    assert max(len(line.rstrip()) for line in text.splitlines() if "arXiv" not in line) <= 80
    assert "…" not in text
    assert text.count("Calcification of the Aorta") == 2


def test_phantom_is_told_and_the_teams_are_left_out(tmp_path: Path, capsys):
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.phantom import write_phantom

    write_phantom(tmp_path / "phantom", images=200, size=32, pictures=False, say=lambda line: None)
    data = str(tmp_path / "phantom")
    task = CHALLENGE["task1"]
    images = read_cohort(data, task="task1").manifest.of_split("test").table["image_id"].to_numpy()
    scores = np.random.default_rng(0).random((len(images), 40))
    submission.write(Store(str(tmp_path)), submission.build(images, scores, task.findings), task, images)
    main(str(tmp_path / "submission.csv"), data=data, task="task1", rounds=20)
    printed = capsys.readouterr().out
    assert "This cohort is the phantom" in printed
    assert "arXiv" not in printed
