"""The lines of a sweep while its trials train."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cxrlt_ray.objectives.zero_shot import LOG_LIFT
from cxrlt_ray.runs.records import TrialRecord
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.search import progress
from cxrlt_ray.storage import Store


@pytest.mark.parametrize(
    ("scores", "line"),
    [
        ({"val_log_lift": 0.5}, "T0003 epoch 2, best val log lift 0.5000, 80 images/s"),
        ({"val_mrr": 0.5}, "T0003 epoch 2, 80 images/s"),  # a stage of pretraining, judged otherwise
    ],
)
def test_an_epoch_is_printed_whatever_its_stage_is_judged_by(scores, line, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", -1)
    shown = progress.Progress(None, 4, 4, LOG_LIFT)
    result = {"epoch": 2, "images_per_second": 80.0, **scores}
    shown.on_trial_result(0, [], SimpleNamespace(config={"number": 3}), result)
    assert capsys.readouterr().out.strip() == line


def ended(number, began, ended, **config):
    settings = TrialConfig(backbone="test_resnet", resolution=64, epochs=4, pretrained=False, **config)
    times = {"state": "finished", "began": began, "ended": ended}
    return Trial(Store("nowhere"), TrialRecord(name=f"T000{number}", config=settings, **times))


def test_the_time_left_is_counted_with_trainings_and_not_with_a_probe(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    probe = {"frozen_backbone": True, "augment": 0.0}
    trials = []
    shown = progress.Progress(SimpleNamespace(trials=lambda: trials), 4, 4, deadline=1000.0)

    def end(trial):
        trials.append(trial)
        shown.on_trial_complete(0, [], SimpleNamespace(config={"number": len(trials) - 1}))
        return capsys.readouterr().out.strip().splitlines()

    now[0] = 40.0
    assert [line.rsplit("| ")[-1] for line in end(ended(0, 0.0, 40.0, **probe))] == ["16.0 min left"]
    now[0] = 340.0  # 300 s of a training: two more of them are planned, and fit
    assert [line.rsplit("| ")[-1] for line in end(ended(1, 40.0, 340.0))] == ["10.0 min left"]
    now[0] = 740.0  # 700 s of two
    lines = end(ended(2, 340.0, 740.0))
    assert lines[0].endswith("5.8 min left")
    assert lines[1].endswith("the time budget holds about 3 of 4 trials")
