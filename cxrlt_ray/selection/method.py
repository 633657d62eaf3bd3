"""How a selection is made: a selector, and how far a finding of few positives leans on something steadier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.selection.registry import FEW

AUTO: Literal["auto"] = "auto"
STRENGTHS = (20.0, 100.0, 5.0, np.inf, 0.0)  # of the guard, the best on average (benchmarks/honesty.py) first
SOUND = 0.6  # of the best member's distance from chance
PRECISE = 5_000  # images from which on members' merits are not shrunk: chance moves them little
Lean = Literal["global", "mean", "sound"]


@dataclass(frozen=True)
class Method:
    """How a selection is made.

    selector, settings: from the registry.  blend: selectors, with their own settings, whose weights are averaged with
    the selector's.  guard: positive subjects at which a finding's own weights count as much as those it leans on; 0 for
    no guard, "auto" to choose among STRENGTHS.  lean: what it leans on: `global`, the weights chosen for all findings
    together; `mean`, equal ones; `sound`, equal ones of the members that are (see `sound`).
    members: at most so many, those of the greatest total weight, then the best; the selection is repeated among them.
    """

    selector: str
    settings: dict[str, Any] = field(default_factory=dict)
    guard: float | Literal["auto"] = 0.0
    members: int | None = None
    lean: Lean = "global"
    blend: tuple[str, ...] = ()


def own_share(targets: np.ndarray, groups: np.ndarray, guard: float) -> np.ndarray:
    """The share [C] of a finding's own weights: n / (n + guard), n its positive subjects; 0 below 2 positive images."""
    subjects = metrics.positive_subjects(targets, groups).astype(float)
    share = np.where(guard > 0, subjects / np.maximum(subjects + guard, 1e-300), 1.0)
    return np.where((targets == 1).sum(axis=0) < FEW, 0.0, share)


def sound(merits: np.ndarray, chance: float, error: float) -> np.ndarray:
    """Which members are worth their place in a plain mean, bool [M].

    Those whose merit (macro mAP [M]) is above chance by SOUND of the best one's. Merits are first drawn towards their
    mean by the share of their variance that is chance (James-Stein, empirical Bayes): members of one search, told apart
    by few images, all stay. error: the variance of a merit less the mean merit, under resampled subjects.
    """
    spread = float(np.var(merits, ddof=1)) if len(merits) > 1 else 0.0
    reliability = max(0.0, 1 - error / spread) if spread > 0 else 0.0
    drawn = merits.mean() + reliability * (merits - merits.mean())
    above = drawn - chance
    return above >= SOUND * above.max()
