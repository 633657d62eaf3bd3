"""Findings asked for by text: the multi-label loss over seen findings, judged on findings whose labels were hidden."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.evaluation.lift import mean_log_lift
from cxrlt_ray.objectives.metric import Metric
from cxrlt_ray.objectives.multilabel import MultiLabel
from cxrlt_ray.objectives.registry import register_objective

LOG_LIFT = Metric("val_log_lift", "max", "val log lift")


@register_objective("zero_shot")
class ZeroShot(MultiLabel):
    """Trained as `multilabel`; a model of it has a head that knows a finding by its text alone.

    Its validation labels are those of the findings that were hidden from the model (data/asking.py).
    """

    metric = LOG_LIFT
    asks = True
    learns_part = False

    def score(self, targets: np.ndarray, probabilities: np.ndarray) -> float:
        """The mean log(AP / prevalence) over findings with a positive."""
        return mean_log_lift(targets, probabilities)
