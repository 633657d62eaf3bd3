"""Generated images of a generator that has learnt who judges a run are refused."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from cxrlt_ray.data.fingerprints import HashedSet, release_of, subject_keys
from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.search.generated import check_generators

SPLITS = ("train", "train", "val", "holdout", "test")


def manifest():
    table = pd.DataFrame([dict.fromkeys(META)] * 20)
    table["image_id"] = table["subject_id"] = [f"s{k}" for k in range(20)]
    table["cohort"], table["split"] = "main", [SPLITS[k % 5] for k in range(20)]
    return Manifest(table, (), "table", "/data")


def folder(tmp_path, learnt):
    (tmp_path / "drawn").mkdir(exist_ok=True)
    (tmp_path / "drawn" / "generate.json").write_text(json.dumps({"learnt": learnt}))
    return {"synthetic": str(tmp_path / "drawn"), "nih": str(tmp_path)}


def seen(data, *subjects):
    return {"seen": HashedSet.of(subject_keys(release_of("table", data), subjects), "salt").model_dump()}


def test_a_generator_of_the_training_subjects_is_taken(tmp_path):
    assert list(check_generators(manifest(), str(tmp_path), folder(tmp_path, seen(str(tmp_path), "s0", "s1")))) == []


@pytest.mark.parametrize(("subject", "split"), [("s2", "val"), ("s3", "holdout"), ("s4", "test")])
def test_one_that_has_learnt_a_judge_is_refused(tmp_path, subject, split):
    cohorts = folder(tmp_path, seen(str(tmp_path), "s0", subject))
    with pytest.raises(UsageError, match=rf"synthetic=.* has learnt 1 of the 4 subjects of split {split}.*split-seed"):
        list(check_generators(manifest(), str(tmp_path), cohorts))
    # of a table elsewhere the same id is another patient
    assert list(check_generators(manifest(), str(tmp_path / "elsewhere"), cohorts)) == []


def test_what_is_not_known_is_told_and_a_damaged_record_refused(tmp_path):
    (note,) = check_generators(manifest(), str(tmp_path), folder(tmp_path, {"subjects": "0123"}))
    assert "is not known" in note
    with pytest.raises(CxrltError, match=r"generate.json is damaged"):
        list(check_generators(manifest(), str(tmp_path), folder(tmp_path, [])))
