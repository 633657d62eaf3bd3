"""A score with the interval that its bootstrap gave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxrlt_ray.evaluation import metrics


@dataclass(frozen=True)
class Estimate:
    """A value and the bounds of its 95 % interval; nan where it is not known."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, draws: np.ndarray) -> Estimate:
        """`value` with the interval of its bootstrap `draws` [R]."""
        return cls(value, *metrics.interval(draws))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0
