"""Labels of studies from a table of their own, put in the place of a cohort's or beside them before it is split.

An image takes the labels of its study. Images that the cohort itself sets apart to be scored (split test or
development) keep the labels they have, if any, so that a score stays comparable: what comes from reports is not tested
on reports. A study that the table does not have is not labelled by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from cxrlt_ray.data.readers import Raw
from cxrlt_ray.data.two_labellings import side_by_side
from cxrlt_ray.errors import UsageError

REPLACE, JOIN = "replace", "join"
MODES = (REPLACE, JOIN)
BLANK = ("zero", "null")
SCORED = ("test", "development")
_MEANS = {"null": pd.NA, "zero": 0, "one": 1}


@dataclass(frozen=True)
class GivenLabels:
    """Labels of studies, and how they are used.

    table: Int8 by study id: 1, 0, -1 (uncertain) or null, a column a finding. provenance: where they are from.
    mode: replace (the table's labels instead of the cohort's) or join (the cohort's 0 and 1 prevail). blank: what a
    null of a study in the table is: zero (not mentioned is not there) or null (not labelled). uncertain: what -1 is:
    null, zero or one.
    """

    table: pd.DataFrame = field(repr=False)
    provenance: str
    mode: str = REPLACE
    blank: str = "zero"
    uncertain: str = "null"

    def findings_of(self, own: Sequence[str], asked: Sequence[str] | None) -> tuple[str, ...]:
        """The findings of a cohort that has `own`, with these labels. asked: the task's; None for all.

        Raises UsageError where labels are replaced and the table lacks an asked one.
        """
        theirs = list(self.table.columns)
        if asked is not None and self.mode == REPLACE and (missing := [name for name in asked if name not in theirs]):
            raise UsageError(
                f"--labels has no column for {len(missing)} of the {len(asked)} findings of the task: "
                f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. --labels-mode join keeps the cohort's."
            )
        both = [name for name in own if self.mode == JOIN or name in theirs]
        every = [*both, *(name for name in theirs if name not in both)]
        return tuple(name for name in every if asked is None or name in asked)

    def applied(self, raw: Raw, asked: Sequence[str] | None) -> Raw:
        """A cohort's rows with these labels, and both side by side. Raises UsageError where no study is in both."""
        findings = self.findings_of(raw.findings, asked)
        rows = rows_of_studies(self.table.index, raw.table["study_id"].fillna(""))
        if not (rows >= 0).any():
            raise UsageError("--labels has none of the cohort's studies: are they of another cohort?")
        own = {
            name: raw.table[name].astype("Int8") if name in raw.findings else pd.Series(pd.NA, raw.table.index, "Int8")
            for name in findings
        }
        kept = self._scored(raw)
        given = {name: self._labels(name, rows, raw.table.index) for name in findings}
        columns = {}
        for name in findings:
            mixed = own[name].where(own[name].notna(), given[name]) if self.mode == JOIN else given[name]
            columns[name] = own[name].where(kept, mixed)
        table = raw.table.drop(columns=list(raw.findings)).assign(**columns)
        both = side_by_side(raw.table, findings, own, given, kept)
        notes = [*raw.notes, *self._notes(rows, kept, own, columns)]
        return replace(raw, table=table, findings=findings, notes=notes, labellings=both)

    def _labels(self, finding: str, rows: np.ndarray, index: pd.Index) -> pd.Series:
        """These labels of a finding for each image: 1, 0 or null."""
        if finding not in self.table:
            return pd.Series(pd.NA, index, "Int8")
        said = self.table[finding].astype("Int8")
        settled = said.mask((said == -1).fillna(False), _MEANS[self.uncertain])
        if self.blank == "zero":
            settled = settled.mask(said.isna(), 0)
        return pd.Series(settled.array.take(np.maximum(rows, 0)), index).mask(rows < 0)

    @staticmethod
    def _scored(raw: Raw) -> np.ndarray:
        """Which images keep their own labels: bool [N]."""
        if "split" not in raw.table or not raw.findings:
            return np.zeros(len(raw.table), bool)
        labelled = raw.table[list(raw.findings)].notna().any(axis=1)
        return (raw.table["split"].isin(SCORED) & labelled).to_numpy(bool)

    def _notes(
        self, rows: np.ndarray, kept: np.ndarray, own: dict[str, pd.Series], new: dict[str, pd.Series]
    ) -> list[str]:
        uncertain = {"null": "is not labelled", "zero": "is 0", "one": "is 1"}[self.uncertain]
        blank = "is 0 (not mentioned)" if self.blank == "zero" else "is not labelled"
        changed = sum(int(((own[name] != new[name]) & own[name].notna() & new[name].notna()).sum()) for name in new)
        filled = sum(int((own[name].isna() & new[name].notna()).sum()) for name in new)
        lost = sum(int((own[name].notna() & new[name].isna()).sum()) for name in new)
        lines = [
            f"Labels: {self.provenance}, --labels-mode {self.mode}: {(rows >= 0).sum():,} of {len(rows):,} images have "
            f"a study there; -1 {uncertain}, blank {blank}.",
            f"Labels: {changed:,} of the cohort's changed, {filled:,} added, {lost:,} removed.",
        ]
        if kept.any():
            lines.append(f"Labels: {kept.sum():,} images of the cohort's own test split keep theirs.")
        return lines


def rows_of_studies(known: pd.Index, studies: pd.Series) -> np.ndarray:
    """The place in `known` of each study's id [N]; -1 where it is not there. MIMIC's ids match without their s, too."""
    own = pd.Index(studies.astype("str"))
    if (rows := known.get_indexer(own)).max(initial=-1) >= 0:
        return rows
    plain = known.str.removeprefix("s")
    return rows if plain.has_duplicates else plain.get_indexer(own.str.removeprefix("s"))
