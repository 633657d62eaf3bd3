"""What a trial costs to serve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cxrlt_ray.runs.store import Trial


def gflops(trials: Sequence[Trial], tta: Sequence[bool] = ()) -> np.ndarray:
    """Cost [M] of scoring one image with each trial: 10^9 floating-point operations, all folds and passes together.

    tta: which trials [M] use test-time augmentation; () for none.
    """
    from cxrlt_ray.models import flops

    cost = [flops(t.config.spec(), len(t.record.findings)) * max(len(t.checkpoints), 1) for t in trials]
    passes = [
        t.record.tta.augmentations if augmented and t.record.tta is not None else 1
        for t, augmented in zip(trials, tta or [False] * len(trials), strict=True)
    ]
    return np.array(cost, float) * passes / 1e9
