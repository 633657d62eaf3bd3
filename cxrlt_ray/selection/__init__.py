"""Selection: predictions of M members in, weights of every member for every finding out. Arrays only.

    exact.py    compiled: average precision as scikit-learn defines it, and greedy selection on it
    greedy.py   the selectors, one file each; a selector is `select(predictions, targets, groups, ...)`:
    mean.py         predictions  float32 [M, N, C], finite
    best.py         targets      int8 [N, C]: 1, 0 or -1 (not labelled)
                    groups       [N]: the subject of each image
                    together     True: one ensemble for all findings, chosen on macro mAP
                    -> weights   float64 [M, C], each finding's sum to 1
    honest.py   what wraps a selector: bags, the tail guard, cross-fitting by subject

To add a selector: a file with a function under `@register_selector("name")`, imported below. Its
keyword arguments are its settings in an ensembles/ file.
"""

from __future__ import annotations

from cxrlt_ray.selection.best import best
from cxrlt_ray.selection.greedy import greedy
from cxrlt_ray.selection.inputs import SELECTORS, register_selector, settings
from cxrlt_ray.selection.mean import mean

__all__ = ["SELECTORS", "best", "greedy", "mean", "register_selector", "settings"]
