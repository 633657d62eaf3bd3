"""What readers of the same studies agree on: consensus, what is left to adjudicate, agreement of pairs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.evaluation.confusion import counts, rates

UNREAD = -2  # a reader has not read the study
OPEN = -3  # readers differ, and none has the majority


@dataclass(frozen=True)
class Consensus:
    """values: int8 [N, C], 1, 0, -1 (uncertain), OPEN or UNREAD. readers: of each study, how many have read it [N]."""

    values: np.ndarray
    readers: np.ndarray

    @property
    def open(self) -> np.ndarray:
        """What is left to adjudicate: bool [N, C]."""
        return self.values == OPEN


def consensus(readings: np.ndarray) -> Consensus:
    """What more than half of those who read a study say. readings: int8 [readers, N, C], 1, 0, -1 or UNREAD.

    >>> consensus(np.array([[[1, 0]], [[1, -1]]], np.int8)).values.tolist()
    [[1, -3]]
    """
    readers = (readings[:, :, 0] != UNREAD).sum(axis=0)
    values = np.full(readings.shape[1:], OPEN, np.int8)
    for value in (1, 0, -1):
        values[(readings == value).sum(axis=0) * 2 > readers[:, None]] = value
    values[readers == 0] = UNREAD
    return Consensus(values, readers)


def pairwise(readings: np.ndarray, names: list[str], findings: tuple[str, ...]) -> pd.DataFrame:
    """Agreement of each pair of readers on which findings are there: a row a finding and one for all together.

    Columns: finding, pair, labels (that both gave), both, one (affirm it), kappa, pabak. Uncertain counts as not there.
    """
    rows = []
    for first, second in itertools.combinations(range(len(readings)), 2):
        one, other = (np.where(part == -1, 0, np.maximum(part, -1)) for part in (readings[first], readings[second]))
        table = counts(one, other).sum(axis=1)
        pooled = table.sum(axis=1, keepdims=True)
        values = rates(np.concatenate([table, pooled], axis=1))
        for c, finding in enumerate((*findings, "All findings")):
            tp, fp, fn, tn = table[:, c] if c < len(findings) else pooled[:, 0]
            row = {"finding": finding, "pair": f"{names[first]} and {names[second]}", "labels": int(tp + fp + fn + tn)}
            row |= {"both": int(tp), "one": int(fp + fn), "kappa": values["kappa"][c], "pabak": values["pabak"][c]}
            rows.append(row)
    return pd.DataFrame(rows)
