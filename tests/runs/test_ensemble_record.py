"""ensemble.json is read as it was written; what is of another version, or damaged, is refused in a sentence."""

from __future__ import annotations

import json

import pytest

from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.ensemble_record import EnsembleRecord
from cxrlt_ray.storage import Store

FINDINGS = ("Mass", "Nodule")
MEMBER = {"trial": "T0001", "resolution": 32, "tta": True, "checkpoints": {"fold-0": "0" * 16}}
WEIGHTS = {"Mass": 0.25, "Nodule": 1.0}


def record(**changes) -> EnsembleRecord:
    content = {
        "name": "greedy",
        "task": Task("mine", FINDINGS),
        "selector": "greedy",
        "space": "logit",
        "guard": "auto",
        "members": [{**MEMBER, "weights": WEIGHTS}],
        "scores": {"prevalence": {"test": 0.2}},
    }
    return EnsembleRecord.model_validate({**content, **changes})


def test_a_record_is_read_as_it_was_written(tmp_path):
    store = Store(str(tmp_path))
    for written in (record(), record(views={"PA": 2.0}, aggregation="mean"), record(chosen={"selector": "mean"})):
        written.write(store)
        assert EnsembleRecord.read(store, "ensemble.json") == written


def test_keys_without_a_value_are_null_and_numbers_that_are_not_finite_too(tmp_path):
    store = Store(str(tmp_path))
    record(guard=float("inf"), scores={"prevalence": {"test": float("nan")}}).write(store)
    content = json.loads((tmp_path / "ensemble.json").read_text())
    assert (content["version"], content["views"], content["guard"]) == (2, None, None)
    assert content["scores"] == {"prevalence": {"test": None}}
    assert list(content)[:3] == ["version", "name", "task"]
    assert EnsembleRecord.read(store, "ensemble.json").guard is None


@pytest.mark.parametrize(
    ("keys", "joined"),
    [
        ({}, "none"),
        ({"views": {"PA": 2.0}}, "mean"),  # files of before `aggregation`
        ({"views": {"PA": 2.0}, "aggregation": "max"}, "max"),
        ({"aggregation": "noisy_or"}, "noisy_or"),
    ],
)
def test_how_studies_are_joined_follows_from_the_views_where_it_is_not_said(keys, joined):
    assert record(**keys).joined_by == joined


def test_a_file_of_before_test_time_augmentation_has_plain_members():
    content = json.loads(record().model_dump_json())
    del content["members"][0]["tta"]
    assert EnsembleRecord.parse(content, "ensemble.json").members[0].tta is False


@pytest.mark.parametrize("content", [[], {}, {"version": 1, "members": []}, {"version": 2}, {"version": "2"}])
def test_what_is_no_ensemble_of_this_version_is_refused(content):
    with pytest.raises(UsageError, match=r"^x/ensemble\.json is not an ensemble\.json of cxrlt_ray, version 2\.$"):
        EnsembleRecord.parse(content, "x/ensemble.json")


def test_a_later_version_and_a_damaged_file_are_told_apart():
    content = json.loads(record().model_dump_json())
    with pytest.raises(UsageError, match="written by a later cxrlt_ray"):
        EnsembleRecord.parse({**content, "version": 3}, "ensemble.json")
    with pytest.raises(CxrltError, match=r"cannot be read as a EnsembleRecord: space"):
        EnsembleRecord.parse({**content, "space": "log"}, "ensemble.json")
    with pytest.raises(CxrltError, match=r"members\.0\.weights"):
        EnsembleRecord.parse({**content, "members": [MEMBER]}, "ensemble.json")
