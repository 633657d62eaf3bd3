"""The lines of a sweep while its trials train."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cxrlt_ray.objectives.zero_shot import LOG_LIFT
from cxrlt_ray.search import progress


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
