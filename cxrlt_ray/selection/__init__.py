"""Selection: predictions of M members in, weights of every member for every finding out. Arrays only.

    registry.py           the registry of selectors, the arrays they take and the checks on them
    kernels.py            compiled: average precision as scikit-learn defines it, its bounds, greedy selection
    finding.py            one finding's scores as the kernels need them
    threads.py            findings shared among threads
    average_precision.py  average precision of members and systems, weighted means
    exact.py              greedy selection on exact average precision
    first_pass.py         the same among more members than memory holds, one finding at a time
    spaces.py             probability, logit or rank: where predictions are averaged
    views.py              one prediction per study: how its images' predictions are joined
    honest.py             around a selector: the tail guard, choices, cross-fitting by subject
    explain.py            what each member adds, how stable the choice is, what the next trial is worth

The selectors, each `select(predictions, targets, groups, *, together=False, seed=0, **settings)`:

    best.py          best           the best single member
    mean.py          mean           equal weights              rank_mean      the same, for ranks
    topk.py          topk_mean      equal weights for the k best
    ap_weighted.py   ap_weighted    weights in proportion to AP
    greedy.py        greedy         forward selection on AP, for each finding
    bagged.py        greedy_global  on macro mAP, for all      greedy_bagged  mean over bags of members
    lift.py          greedy_lift    on the mean log(AP / prevalence), for all: findings without labels
    least_squares.py nnls           stacking by least squares
    logistic.py      logistic       stacking by logistic regression on logits
    simplex.py       simplex        log loss of the pool (em.py) or a smooth AP
    frontier.py      frontier       greedy under a serving budget; `curve`: score against cost

    predictions  float32 [M, N, C], finite, in the selector's space (SPACES_OF)
    targets      int8 [N, C]: 1, 0 or -1 (not labelled)
    groups       [N]: the subject of each image
    together     True: one ensemble for all findings, chosen on macro mAP or the pooled loss
    -> weights   float64 [M, C], none negative, each finding's sum to 1

A finding of fewer than 2 positives gets the weights chosen for all findings together.

To add a selector: a file with a function under `@register_selector("name")`, imported below. Its keyword arguments are
its settings in an ensembles/ file.
"""

from __future__ import annotations

from cxrlt_ray.selection.ap_weighted import ap_weighted
from cxrlt_ray.selection.bagged import greedy_bagged, greedy_global
from cxrlt_ray.selection.best import best
from cxrlt_ray.selection.frontier import Point, curve, frontier
from cxrlt_ray.selection.greedy import greedy
from cxrlt_ray.selection.least_squares import nnls
from cxrlt_ray.selection.lift import greedy_lift
from cxrlt_ray.selection.logistic import logistic
from cxrlt_ray.selection.mean import mean, rank_mean
from cxrlt_ray.selection.registry import SELECTORS, SPACES_OF, register_selector, settings, takes_costs
from cxrlt_ray.selection.simplex import simplex
from cxrlt_ray.selection.topk import topk_mean

__all__ = [
    "SELECTORS",
    "SPACES_OF",
    "Point",
    "ap_weighted",
    "best",
    "curve",
    "frontier",
    "greedy",
    "greedy_bagged",
    "greedy_global",
    "greedy_lift",
    "logistic",
    "mean",
    "nnls",
    "rank_mean",
    "register_selector",
    "settings",
    "simplex",
    "takes_costs",
    "topk_mean",
]
