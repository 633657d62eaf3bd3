"""Distillation: a student learns the stored predictions of an ensemble or a trial beside its labels.

Hinton, Vinyals and Dean 2015 (section 2) for independent labels: each finding is a problem of two classes, so that the
softmax at temperature T is a sigmoid. With teacher probability p and student logit z, the soft term of a cell is

    T^2 BCE(sigmoid(z / T), sigmoid(logit(p) / T))

T^2 keeps its gradient as large as that of the labels. A cell without a soft target has no soft term, one without a
label no label term: each term is the mean over its own cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.objectives.multilabel import MultiLabel
from cxrlt_ray.objectives.registry import ABOVE_ZERO, Needs, Setting, register_objective

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.objectives.registry import Targets

NONE = -1.0  # in the table: no label, no soft target
SMALLEST = 1e-6  # of a teacher's probabilities: a logit of infinity has no gradient


@register_objective("distill")
class Distill(MultiLabel):
    """(1 - share) x label loss + share x soft loss.

    distill_temperature: T, above 0. distill_share: of the soft term, from 0 (labels alone) to 1.
    """

    needs = Needs(labels=True, soft_targets=True)
    settings = {  # noqa: RUF012  a class variable of the base class
        "distill_temperature": Setting(2.0, *ABOVE_ZERO),
        "distill_share": Setting(0.5, "from 0 to 1", lambda value: 0 <= value <= 1),
    }

    def table(self) -> np.ndarray:
        """float32 [N, 2 C]: the labels, then the soft targets; NONE where there is none."""
        assert self.soft is not None
        soft = np.where(np.isnan(self.soft), NONE, self.soft)
        return np.concatenate([super().table(), soft.astype(np.float32)], axis=1)

    def loss(self, outputs: torch.Tensor, targets: Targets) -> torch.Tensor:
        """The mixture of both terms for logits [B, C] and rows of `table` [B, 2 C]."""
        share, count = self.setting("distill_share"), outputs.shape[1]
        labels = [(weight, rows[:, :count]) for weight, rows in targets]
        soft = [(weight, rows[:, count:]) for weight, rows in targets]
        soft_loss = sum(weight * self.soft_loss(outputs, rows) for weight, rows in soft)
        if share == 1:
            return soft_loss  # type: ignore[return-value]
        return (1 - share) * super().loss(outputs, labels) + share * soft_loss

    def soft_loss(self, logits: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """The soft term of logits [B, C] and teacher probabilities [B, C], NONE where there is none; 0 without any."""
        import torch
        import torch.nn.functional as F

        temperature = self.setting("distill_temperature")
        given = probabilities >= 0
        teacher = torch.logit(probabilities.clamp(0, 1), eps=SMALLEST) / temperature
        cells = F.binary_cross_entropy_with_logits(logits / temperature, teacher.sigmoid(), reduction="none")
        return temperature**2 * (cells * given).sum() / given.sum().clamp(min=1)
