"""What a trial costs to serve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cxrlt_ray.runs.store import Trial


def gflops(trials: Sequence[Trial], tta: Sequence[bool] = ()) -> np.ndarray:
    """Cost [M] of scoring one image with each trial: 10^9 floating-point operations, all folds and passes together.

    tta: which trials [M] use test-time augmentation; () for none.
    """
    cost = [flops_of(t) * max(len(t.checkpoints), 1) for t in trials]
    passes = [
        t.record.tta.augmentations if augmented and t.record.tta is not None else 1
        for t, augmented in zip(trials, tta or [False] * len(trials), strict=True)
    ]
    return np.array(cost, float) * passes / 1e9


def flops_of(trial: Trial) -> int:
    """Floating-point operations to score one image with one of a trial's models: as recorded, else counted by torch."""
    if trial.record.flops is not None:
        return trial.record.flops
    from cxrlt_ray.models import flops

    return flops(trial.config.spec(), len(trial.record.findings))
