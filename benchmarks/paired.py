"""Test mAP of systems that were trained with several seeds each, and how much one is above another, by subject."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from cxrlt_ray.evaluation.estimate import Sample

ROUNDS = 1000  # of the bootstrap
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Paired(Generic[Name]):
    """values: mAP [S] of each system by seed; draws: the same [S, R] on subjects drawn anew, the same for all."""

    values: dict[Name, np.ndarray]
    draws: dict[Name, np.ndarray]
    sample: Sample

    def gain(self, name: Name, other: Name) -> str:
        """How much the mean over the seeds of one system is above another's, with its 95 % interval, as text."""
        from cxrlt_ray import cli
        from cxrlt_ray.evaluation.estimate import Estimate

        value = float(self.values[name].mean() - self.values[other].mean())
        difference = self.draws[name].mean(axis=0) - self.draws[other].mean(axis=0)
        gain = Estimate.of_difference(value, difference, self.sample)
        return cli.gained(gain.value, gain.low, gain.high)


def paired(systems: Mapping[Name, Sequence[np.ndarray]], targets: np.ndarray, groups: np.ndarray) -> Paired[Name]:
    """systems: probabilities [N, C] by seed. targets: int8 [N, C]. groups: the subject of each image [N]."""
    from cxrlt_ray.evaluation import metrics
    from cxrlt_ray.evaluation.estimate import Sample
    from cxrlt_ray.selection.average_precision import precisions

    flat = [scores for by_seed in systems.values() for scores in by_seed]
    draws = np.array([metrics.means(ap) for ap in metrics.bootstrap_ap(targets, flat, groups, rounds=ROUNDS)])
    values = np.array([metrics.macro(ap) for ap in precisions(np.array(flat), targets)])
    ends = np.cumsum([len(by_seed) for by_seed in systems.values()])[:-1]
    return Paired(
        dict(zip(systems, np.split(values, ends), strict=True)),
        dict(zip(systems, np.split(draws, ends), strict=True)),
        Sample.of(targets, groups),
    )
