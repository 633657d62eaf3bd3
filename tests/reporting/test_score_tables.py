"""Scores on the console and as JSON, beside the paper's teams."""

from __future__ import annotations

import json

import numpy as np
from scored_cohort import shown, some_scores

from cxrlt_ray.data.tasks import CHALLENGE
from cxrlt_ray.evaluation.published import published
from cxrlt_ray.evaluation.scores import evaluate
from cxrlt_ray.reporting.scores import as_json, render


def test_finding_without_positives_is_named_and_stands_in_no_mean():
    report = some_scores()
    assert report.without_positives == ["Hernia"]
    assert np.isfinite(report.scores["map"])
    assert "Without positives here, and so in no mean: Hernia" in shown(render(report))


def test_report_as_json_has_null_for_what_has_no_value():
    content = json.loads(json.dumps(as_json(some_scores()), allow_nan=False))
    assert content["findings"]["Hernia"]["ap"] is None
    assert content["scores"]["tail"] is None
    assert content["findings"]["Mass"]["group"] == "head"
    assert content["teams"] is None


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


def test_a_finding_of_too_few_positive_subjects_is_marked_and_has_no_interval():
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 2)) < [0.3, 0.01]).astype(np.int8)
    report = evaluate(targets, rng.random((200, 2)), ["Mass", "Hernia"], ["head", "tail"], np.arange(200), 50)
    rows = {line.split()[0]: line for line in shown(render(report)).splitlines() if line.split()}
    assert "*" in rows["Hernia"]
    assert "*" not in rows["Mass"]
    frame = report.frame().set_index("finding")
    assert np.isnan(frame.loc["Hernia", "ap_low"])
    assert frame.loc["Mass", "ap_low"] < frame.loc["Mass", "ap"] < frame.loc["Mass", "ap_high"]
    assert np.isnan(report.intervals["tail"][0])
    assert report.intervals["map"][0] < report.scores["map"] < report.intervals["map"][1]
