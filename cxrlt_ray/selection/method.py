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
    together; `mean`, equal ones; `sound`, equal ones of the members that are (see `sound`), all where none is.
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


def sound(ap: np.ndarray, draws: np.ndarray | None, prevalence: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Which members are worth their place in a plain mean, bool [M]; none where no finding has a share.

    Those whose merit is above chance by SOUND of the best one's. A member's merit is the mean of its AP [M, C] weighted
    by the findings' shares [C] (`own_share`: one positive tells nothing), chance that of prevalence [C]. Merits are
    first drawn towards their mean by the share of their variance that is chance (James-Stein, empirical Bayes): members
    of one search, told apart by few images, all stay. draws: AP [M, C, R] under resampled subjects; None where so many
    images leave little to chance.
    """
    judging = shares > 0
    if not judging.any():
        return np.zeros(len(ap), bool)
    weights = shares[judging] / shares[judging].sum()
    merits = ap[:, judging] @ weights
    error = 0.0
    if draws is not None and len(ap) > 1:
        error = float(np.nanvar(_centred(draws[:, judging], weights), axis=1).mean())
    spread = float(np.var(merits, ddof=1)) if len(merits) > 1 else 0.0
    reliability = max(0.0, 1 - error / spread) if spread > 0 else 0.0
    drawn = merits.mean() + reliability * (merits - merits.mean())
    above = drawn - prevalence[judging] @ weights
    return above >= SOUND * above.max()


def _centred(draws: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Members' merits less their mean in each draw [M, R], over the findings with a value there; nan without any."""
    known = ~np.isnan(draws)
    total = (known * weights[:, None]).sum(axis=1)
    merits = (np.where(known, draws, 0) * weights[:, None]).sum(axis=1) / np.where(total > 0, total, np.nan)
    return merits - merits.mean(axis=0)
