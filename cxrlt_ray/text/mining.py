"""Labels of findings that have none, from reports: affirmed is 1, denied or not mentioned 0, unsure no label.

As team G of CXR-LT 2024 mined the five findings of task 3, by rules instead of a language model. Studies of the splits
train and val are mined, so that nothing of what is scored is used. A report that is not read (empty, or in another
language) tells nothing: no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from cxrlt_ray.data.asking import CHOSEN_ON
from cxrlt_ray.data.given_labels import rows_of_studies
from cxrlt_ray.data.manifest import Manifest, studies
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.labelled import RuleSet, labelled
from cxrlt_ray.labelling.labels import FOREIGN, NOTHING, SOURCE, STUDY, LabelTable
from cxrlt_ray.labelling.reports import Reports
from cxrlt_ray.labelling.rules import UNCERTAIN, ruled_findings
from cxrlt_ray.text.descriptions import own_labels


def mine(reports: Reports, findings: Sequence[str], rules: str | None = None, address: str | None = None) -> LabelTable:
    """The mined labels of all reports: Int8 by study id, 1, 0 or null. rules: a folder of the user's own rule files.

    The rules of a finding are found in any spelling of its name, or by an alias. Raises UsageError for a finding
    without rules, and where there are no reports.
    """
    import pyarrow as pa

    asked = tuple(dict.fromkeys(findings))
    known = ruled_findings(rules)
    own_of = own_labels(known, asked)
    names = tuple(own_of.get(name, name) for name in asked)
    if missing := set(names) - set(known):
        raise UsageError(
            f"no rules for finding '{sorted(missing)[0]}', so that no report tells its label: leave it out of --ask, "
            "or ask for it on another --track; `mine(..., rules=FOLDER)` takes rules of your own (docs/labels.md)."
        )
    rule_set = RuleSet(rules, tuple(dict.fromkeys(names)), ("cardiopulmonary",), False, "keep")
    tables = [labels for labels, _ in labelled(reports, rule_set, address)]
    if not tables:
        raise UsageError("there are no reports to mine: their table has no rows.")
    table = pa.concat_tables(tables).to_pandas()
    said = table[list(names)].astype("Int8").set_index(pd.Index(table[reports.id_column].astype("str"), name=STUDY))
    unread = table[SOURCE].isin([FOREIGN, NOTHING]).to_numpy()
    mined = said.fillna(0).mask(said.eq(UNCERTAIN).fillna(False)).mask(unread[:, None] & np.ones(said.shape, bool))
    mined = mined[[*names]].set_axis(list(asked), axis=1)
    notes = [_note(mined, name) for name in asked]
    return LabelTable(mined.astype("Int8"), None, STUDY, (*reports.notes, *notes))


def of_splits(mined: LabelTable, manifest: Manifest, splits: Sequence[str] = CHOSEN_ON) -> LabelTable:
    """The mined labels of the studies of a manifest's splits, by the manifest's study ids.

    Raises UsageError where none of them has a report.
    """
    table = manifest.of_split(*splits).table
    ids = pd.Index(pd.unique(studies(table)[0].astype(str)), name=STUDY)
    rows = rows_of_studies(mined.table.index, pd.Series(ids))
    if not (rows >= 0).any():
        raise UsageError(f"no study of the splits {', '.join(splits)} has a report: are they of another cohort?")
    return replace(mined, table=mined.table.iloc[rows[rows >= 0]].set_index(ids[rows >= 0]))


def beside(manifest: Manifest, mined: LabelTable, splits: Sequence[str] = CHOSEN_ON) -> Manifest:
    """A manifest with the mined labels of `splits` in the place of its own of those findings; all else as it is.

    A study of `splits` that was not mined has no label of them. Findings that the manifest lacks are added at the end.
    """
    rows = rows_of_studies(mined.table.index, pd.Series(studies(manifest.table)[0]))
    replaced = manifest.table["split"].isin(splits).to_numpy()
    table = manifest.table.copy()
    for name in mined.findings:
        own = table[name] if name in table else pd.Series(pd.NA, table.index, "Int8")
        labels = pd.Series(mined.table[name].array.take(rows, allow_fill=True), table.index)
        table[name] = own.astype("Int8").mask(replaced, labels)
    added = tuple(name for name in mined.findings if name not in manifest.findings)
    return replace(manifest, table=table, findings=(*manifest.findings, *added))


def _note(mined: pd.DataFrame, finding: str) -> str:
    labels = mined[finding]
    return (
        f"Mined: {finding}: {int(labels.eq(1).sum()):,} positive, {int(labels.eq(0).sum()):,} negative, "
        f"{int(labels.isna().sum()):,} without label."
    )
