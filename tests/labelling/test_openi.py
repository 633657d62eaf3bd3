"""The labeller beside hand codes, the phantom's truth, and sentences in ICU style."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.labelling.closure import NORMAL
from cxrlt_ray.labelling.labeller import Labeller
from cxrlt_ray.labelling.rules import load_rules
from cxrlt_ray.phantom.labels import draw_cohort
from cxrlt_ray.phantom.reports import write_report

ICU = Path(__file__).with_name("icu_sentences.csv")


@pytest.fixture(scope="module")
def labeller():
    return Labeller(load_rules())


def f1(counts: np.ndarray) -> float:
    """Of (true positives, false positives, false negatives)."""
    tp, fp, fn = counts
    return 2 * tp / (2 * tp + fp + fn)


def compared(said: bool, true: bool) -> np.ndarray:
    return np.array([said and true, said and not true, true and not said])


def test_open_i_part_dev_micro_and_macro_f1(labeller, shared_data):
    gold = pd.read_csv(shared_data.parent / "labeling" / "openi_gold.csv.gz", dtype={"report_id": str})
    gold = gold[gold.pop("part") == "dev"].set_index("report_id")
    reports = pd.read_csv(shared_data / "reports" / "openi_reports.csv.gz", dtype=str, keep_default_na=False)
    reports = reports.set_index("report_id").loc[gold.index]
    counts = pd.DataFrame(0, gold.columns, ["tp", "fp", "fn"])
    for report, (_, codes) in zip(reports.itertuples(), gold.iterrows(), strict=True):
        cells = {"FINDINGS": report.findings, "IMPRESSION": report.impression}
        labels = labeller.read("\n\n".join(f"{name}: {cell}" for name, cell in cells.items() if cell)).labels
        for finding, code in codes.dropna().items():
            counts.loc[finding] += compared(labels.get(finding) == 1, code == 1)
    often = counts[counts["tp"] + counts["fn"] >= 5]
    assert f1(counts.sum().to_numpy()) > 0.965
    assert np.mean([f1(row) for row in often.to_numpy()]) > 0.93


def test_the_phantoms_reports_say_its_truth(labeller):
    """Normal apart: a report that only denies is Normal by definition; the phantom's truth draws Normal beforehand."""
    cohort, counts = draw_cohort(600, 3), np.zeros(3)
    for k in range(len(cohort.studies)):
        told = cohort.mention[k], cohort.strength[k], cohort.side[k], int(cohort.studies["study_id"][k]), 3
        labels = labeller.read(write_report(*told)).labels
        for name, mention in zip(ALL_FINDINGS, cohort.mention[k], strict=True):
            if name != NORMAL:
                counts += compared(labels.get(name) == 1, mention == 1)
    assert f1(counts) > 0.99


@pytest.mark.parametrize(("half", "least"), [("before", 0.96), ("after", 0.88)])
def test_sentences_in_icu_style(labeller, half, least):
    """The share of labels and blanks that come out; half `after` was written beside the rules and is for checking."""
    if not ICU.exists():
        pytest.skip(f"{ICU.name} is not here")
    right: Counter[bool] = Counter()
    with ICU.open() as file:
        for row in csv.DictReader(file):
            if row["half"] != half:
                continue
            labels = labeller.read(row["sentence"]).labels
            wanted = dict(cell.split("=") for cell in row["labels"].split(";") if cell)
            right.update(labels.get(name) == int(value) for name, value in wanted.items())
            unscored = row["unscored"].split(";")
            right.update(name not in labels for name in row["blank"].split(";") if name and name not in unscored)
    assert right[True] / right.total() >= least
