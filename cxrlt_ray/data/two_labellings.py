"""Labels of the same studies by a cohort and by a table beside it, kept to be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class TwoLabellings:
    """M studies that have labels of both.

    own, given: the cohort's and the table's, int8 [M, C], 1, 0 or -1 (no label). subjects: [M]. scored: which studies
    the cohort sets apart to be scored, bool [M].
    """

    findings: tuple[str, ...]
    own: np.ndarray
    given: np.ndarray
    subjects: np.ndarray
    scored: np.ndarray

    def part(self, scored: bool) -> TwoLabellings:
        """The studies that are scored, or the others."""
        rows = self.scored == scored
        return TwoLabellings(self.findings, self.own[rows], self.given[rows], self.subjects[rows], self.scored[rows])


def side_by_side(
    table: pd.DataFrame,
    findings: Sequence[str],
    own: Mapping[str, pd.Series],
    given: Mapping[str, pd.Series],
    scored: np.ndarray,
) -> TwoLabellings | None:
    """The first image of each study that has a label of both; None where no finding or no study has.

    table: the images' rows, with study_id and, if known, subject_id. own, given: Int8 [N] by finding, null: no label.
    """
    shared = tuple(name for name in findings if own[name].notna().any() and given[name].notna().any())
    if not shared:
        return None
    first = ~table["study_id"].duplicated().to_numpy() & table["study_id"].notna().to_numpy(bool)
    labels = [np.column_stack([by[name].fillna(-1).to_numpy(np.int8) for name in shared])[first] for by in (own, given)]
    rows = ((labels[0] >= 0) & (labels[1] >= 0)).any(axis=1)
    if not rows.any():
        return None
    who = table["subject_id"] if "subject_id" in table else table["study_id"]
    subjects = who.fillna(table["study_id"]).to_numpy()[first][rows].astype(str)
    return TwoLabellings(shared, labels[0][rows], labels[1][rows], subjects, scored[first][rows])
