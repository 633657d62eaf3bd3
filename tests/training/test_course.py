"""The weights of stages on other cohorts, shared by trials: damage is trained over, any other error is raised."""

from __future__ import annotations

import pytest

from cxrlt_ray import models
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store
from cxrlt_ray.training.course import shared_stage
from cxrlt_ray.training.job import Job

KEY = "0123456789ab"


@pytest.fixture
def stages(tmp_path):
    spec = models.ModelSpec("test_resnet", 32, pretrained=False)
    (tmp_path / "stages" / KEY).mkdir(parents=True)
    models.save(models.build(spec, ("Mass",)), spec, ("Mass",), tmp_path / "stages" / KEY)
    return Store(str(tmp_path / "stages"))


@pytest.fixture
def job(tmp_path):
    return Job(Store(str(tmp_path)), (), ("Mass",), "")


def test_weights_that_are_there_are_taken_and_those_that_are_not_are_none(stages, job):
    assert shared_stage(stages, KEY, job) is not None
    assert shared_stage(stages, "another", job) is None


def test_damaged_weights_are_said_and_trained_again(stages, job, capsys):
    path = stages.local / KEY / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    assert shared_stage(stages, KEY, job) is None
    assert "is damaged (SafetensorError): its stage is trained again" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), CxrltError("s3://bucket cannot be reached.")])
def test_any_other_error_is_raised_and_not_hidden_by_training_again(stages, job, monkeypatch, error):
    def broken(folder):
        raise error

    monkeypatch.setattr(models, "load", broken)
    with pytest.raises(type(error)):
        shared_stage(stages, KEY, job)
