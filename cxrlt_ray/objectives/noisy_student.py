"""Noisy Student: pseudo-labels stand where labels are missing; images are learnt with the noise of the configuration.

Xie, Luong, Hovy and Le 2020 (section 2): a teacher without noise labels images, a student as large or larger learns
them and the labelled images under noise (here `augment`, `mix`, `drop_path`, `drop_rate`), and teaches next. For
independent labels what is missing is a cell: an image of another cohort keeps the labels that it has, and its other
cells are filled, as CheXFusion's public code does. A run without pseudo-labels trains the first teacher: the objective
then is `multilabel`.
"""

from __future__ import annotations

import numpy as np

from cxrlt_ray.objectives.multilabel import MultiLabel
from cxrlt_ray.objectives.registry import Needs, register_objective


@register_objective("noisy_student")
class NoisyStudent(MultiLabel):
    """The mean of a registered loss over labelled and pseudo-labelled cells; class counts are those of labels."""

    needs = Needs(labels=True, pseudo_labels=True)

    def table(self) -> np.ndarray:
        """float32 [N, C]: the labels; where there is none the pseudo-label in [0, 1], or -1 where there is none."""
        labels = super().table()
        if self.soft is None:
            return labels
        return np.where((labels < 0) & ~np.isnan(self.soft), self.soft, labels).astype(np.float32)
