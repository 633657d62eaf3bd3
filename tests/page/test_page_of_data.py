"""What a page says of the data: near-duplicates of two splits, and labels given beside the cohort's own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.data.duplicates import HASH, NEAR, near_pairs
from cxrlt_ray.page import cohort_facts
from cxrlt_ray.page.facts import Facts
from cxrlt_ray.page.render import gathered, render
from cxrlt_ray.runs.label_agreement import AgreementRate, LabelAgreement
from cxrlt_ray.runs.records import ShardsRecord
from cxrlt_ray.runs.store import Run, load_run
from cxrlt_ray.storage import Store

sys.path.insert(0, str(Path(__file__).parent))
from browser_page import drawn_run

FINDINGS = ("Effusion", "Mass")


def with_hashes(run: Run, hashes: np.ndarray | None) -> Run:
    """The run with an index of shards that has a hash of each of the manifest's images; None: it has no hashes."""
    index = run.manifest().table[["image_id"]].assign(file="a.parquet", offset=0, length=1)
    if hashes is not None:
        index[HASH] = [row.tobytes() for row in hashes]
    with Store(str(Path(run.store.uri).parent / "shards" / "drawn-32px")).place("index.parquet") as path:
        index.to_parquet(path, index=False)
    run.write(run.record.model_copy(update={"shards": (ShardsRecord(name="drawn-32px", size=32),)}))
    return load_run(str(Path(run.store.uri).parent))


def random_hashes(run: Run) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (len(run.manifest().table), 32), np.uint8)


@pytest.fixture
def run(tmp_path):
    return drawn_run(tmp_path, trials=2, images=90, findings=FINDINGS)


def rows_of(run: Run) -> dict[str, np.ndarray]:
    return run.manifest().table.groupby("split").indices


def test_copies_in_two_splits_are_counted_and_a_thing_to_know(run):
    hashes, rows = random_hashes(run), rows_of(run)
    hashes[rows["test"][:3]] = hashes[rows["train"][0]]
    hashes[rows["test"][2], 0] ^= 0xFF  # eight bits differ
    report = gathered(Facts(with_hashes(run, hashes), rounds=20))
    shared = {row["splits"]: (row["alike"], row["compared"]) for row in report.sections["data"]["shared"]}
    assert shared["test and train"] == (3, len(rows["test"]))
    assert shared["train and val"] == (0, len(rows["val"]))
    notice = next(n for n in report.sections["summary"]["notices"] if n["title"] == "Near-duplicate images")
    assert (notice["level"], "3 in test and train" in notice["text"]) == ("warn", True)
    assert "near-duplicates" in render(report)


def test_images_of_the_smaller_split_are_taken_where_all_would_be_too_many(run):
    hashes, rows = random_hashes(run), rows_of(run)
    hashes[rows["test"]] = hashes[rows["train"][0]]
    run = with_hashes(run, hashes)
    images = cohort_facts.indexed(run.manifest(), run.shards()[0])
    alike = cohort_facts.near_duplicates(images, most=5 * len(rows["train"]))["test and train"]
    assert (alike.compared, alike.found) == (5, 5)


def test_images_without_a_hash_are_left_out_and_shards_without_any_are_no_fault(run):
    hashes = random_hashes(run)
    hashes[:] = hashes[0]  # all alike
    store = Path(run.store.uri).parent / "shards" / "drawn-32px"
    run = with_hashes(run, hashes)
    index = pd.read_parquet(store / "index.parquet")
    index[HASH] = None
    index.to_parquet(store / "index.parquet", index=False)
    assert cohort_facts.near_duplicates(cohort_facts.indexed(run.manifest(), run.shards()[0])) is None
    report = gathered(Facts(with_hashes(run, None), rounds=20))
    assert "not known" in report.sections["data"]["shared_note"]
    assert all(notice["title"] != "Near-duplicate images" for notice in report.sections["summary"]["notices"])


def test_different_images_are_far_apart():
    hashes = np.random.default_rng(0).integers(0, 256, (200, 32), np.uint8)
    assert len(near_pairs(hashes[:100], hashes[100:], NEAR)) == 0


def test_the_agreement_of_given_labels_is_shown(run):
    rate, unknown = AgreementRate(value=0.75, low=0.5, high=0.9), AgreementRate(value=None, low=None, high=None)
    rows = [
        LabelAgreement(finding="Mass", scored=scored, studies=9, own=4, given=4, both=3, f1=rate, kappa=unknown)
        for scored in (True, False)
    ]
    run.write(run.record.model_copy(update={"labels": "rules.csv", "label_agreement": tuple(rows)}))
    report = gathered(Facts(load_run(str(Path(run.store.uri).parent)), rounds=20))
    assert [row["images"] for row in report.sections["data"]["agreement"]] == ["scored", "training"]
    assert report.sections["data"]["agreement"][0]["f1"] == {"value": 0.75, "low": 0.5, "high": 0.9}
    page = render(report)
    assert "Labels given beside the cohort" in page
    assert ".750" in page
