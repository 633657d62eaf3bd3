"""A score with its 95 % interval, from bootstrap draws by subject.

The interval is for the score to expect of another sample of so many images from the same population. For average
precision that is more than many images would give (`metrics.population_ap` estimates that). The draws' own quantiles
are not used: average precision rises under drawing with replacement, as copies of a positive lift each other. What the
draws do tell is the standard error. benchmarks/intervals.py compares nine methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxrlt_ray.evaluation import metrics

LEVEL = 0.95
NO_WIDTH = 1e-9  # rounding: below it the draws are equal
LEAST = 4  # degrees of freedom below which so few positives tell nothing: the interval would be nearly [0, 1]


@dataclass(frozen=True)
class Sample:
    """What an interval rests on: positive subjects of each finding, int [C], and subjects in all."""

    positives: np.ndarray
    subjects: int

    @classmethod
    def of(cls, targets: np.ndarray, groups: np.ndarray) -> Sample:
        """The sample of images with targets [N, C] and subjects [N]."""
        return cls(metrics.positive_subjects(targets, groups), int(metrics.numbered(groups).max()) + 1)

    def part(self, findings: np.ndarray | list[int]) -> Sample:
        """The same of some of the findings, by a mask or indices."""
        return Sample(self.positives[findings], self.subjects)

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the findings' mean: positive subjects less findings; at most all subjects less one."""
        return int(min(self.positives.sum() - (self.positives > 0).sum(), self.subjects - 1))


@dataclass(frozen=True)
class Estimate:
    """A value and the bounds of its 95 % interval; nan where it is not known."""

    value: float
    low: float
    high: float

    @classmethod
    def of_score(cls, value: float, draws: np.ndarray, sample: Sample) -> Estimate:
        """A score in [0, 1], or a mean of findings' scores, with its interval; nan where that is not known.

        It is not below LEAST degrees of freedom, or where all draws are equal: of constant predictions.

        draws [R]: its bootstrap values, nan left out. sample: of the findings that it is a mean of. The interval is
        value ± t standard errors on the logit scale (Boyd, Eng & Page 2013, for AP), with Student's t; at a value of 0
        or 1 the exact binomial bound of so many positive subjects.
        """
        if np.isnan(value) or sample.degrees < LEAST:
            return cls(value, float("nan"), float("nan"))
        if not 0 < value < 1:
            bound = ((1 - LEVEL) / 2) ** (1 / float(sample.positives.sum()))
            return cls(value, *((0.0, 1 - bound) if value <= 0 else (bound, 1.0)))
        half = _half(draws, sample) / (value * (1 - value))
        if half < NO_WIDTH:
            return cls(value, float("nan"), float("nan"))
        centre = np.log(value / (1 - value))
        low, high = 1 / (1 + np.exp(-(centre + np.array([-half, half]))))
        return cls(value, float(low), float(high))

    @classmethod
    def of_difference(cls, value: float, draws: np.ndarray, sample: Sample) -> Estimate:
        """A paired difference of scores with its interval: value ± t standard errors. draws, sample: as above."""
        if np.isnan(value) or sample.degrees < LEAST:
            return cls(value, float("nan"), float("nan"))
        half = _half(draws, sample)
        return cls(value, value - half, value + half)

    @property
    def known(self) -> bool:
        """Whether there is an interval: not where there are too few positive subjects."""
        return not np.isnan(self.low)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def _half(draws: np.ndarray, sample: Sample) -> float:
    """Half the width of an interval on the draws' own scale; 0 where no draw has a value."""
    from scipy.special import stdtrit

    known = draws[~np.isnan(draws)]
    error = float(known.std()) if known.size else 0.0
    return float(stdtrit(sample.degrees, (1 + LEVEL) / 2)) * error
