"""A trial: what trains and what validates, stage after stage, and what is left."""

from __future__ import annotations

import pytest

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.models import weights
from cxrlt_ray.runs.records import TrialRecord
from cxrlt_ray.storage import Store
from cxrlt_ray.training.context import TrialContext
from cxrlt_ray.training.trial import origin_of


def process_of(store, **record):
    """A process that trains the trial in `store`, whose record it takes to be this."""
    return TrialContext(
        None, None, None, store, None, TrialRecord(**{"name": "T0003", "state": "running", **record}), None, None
    )


def test_a_trial_ended_from_outside_is_not_written_over(tmp_path):
    store = Store(str(tmp_path))
    TrialRecord(name="T0003", state="pruned").write(store, "trial.json")
    before = store.read("trial.json")
    process_of(store, attempt=0).update()
    assert store.read("trial.json") == before


def test_a_trial_begun_anew_elsewhere_is_not_written_by_its_first_process(tmp_path):
    store = Store(str(tmp_path))
    TrialRecord(name="T0003", state="running", attempt=1).write(store, "trial.json")
    with pytest.raises(CxrltError, match="T0003 was begun anew in another process; this one ends"):
        process_of(store, attempt=0).update()
    assert store.read_json("trial.json")["attempt"] == 1


def test_weights_of_an_earlier_trial_are_told_with_where_that_began(tmp_path):
    store = Store(str(tmp_path)) / "run" / "trials" / "T0001"
    TrialRecord(name="T0001", state="finished", weights="transformers:microsoft/rad-dino").write(store, "trial.json")
    told = origin_of(f"{store.uri}/fold-0/model.safetensors")
    assert told.endswith("model.safetensors, which began from transformers:microsoft/rad-dino")
    assert weights.saw_mimic(told)
    assert origin_of("s3://b/w.safetensors") == "s3://b/w.safetensors"
    assert not weights.saw_mimic("timm convnext_small.fb_in22k_ft_in1k")
