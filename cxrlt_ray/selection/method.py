"""How a selection is made: a selector, and how far a finding of few positives leans on something steadier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cxrlt_ray.selection.registry import FEW

AUTO: Literal["auto"] = "auto"
STRENGTHS = (20.0, 100.0, 5.0, np.inf, 0.0)  # of the guard, the best on average (benchmarks/honesty.py) first
Lean = Literal["global", "mean", "sound"]


@dataclass(frozen=True)
class Method:
    """How a selection is made.

    selector, settings: from the registry.  blend: selectors, with their own settings, whose weights are averaged with
    the selector's.  guard: positive subjects at which a finding's own weights count as much as those it leans on; 0 for
    no guard, "auto" to choose among STRENGTHS.  lean: what it leans on: `global`, the weights chosen for all findings
    together; `mean`, equal ones; `sound`, equal ones of the members whose macro mAP is at
    least half as far above chance as the best one's.
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
    subjects = np.array([len(np.unique(groups[column == 1])) for column in targets.T], float)
    share = np.where(guard > 0, subjects / np.maximum(subjects + guard, 1e-300), 1.0)
    return np.where((targets == 1).sum(axis=0) < FEW, 0.0, share)
