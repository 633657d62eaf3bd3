"""The folder of a gold standard in the making: its design, the readers' sheets, and what they filled in.

FOLDER/design.csv        item, study_id, subject_id, inclusion_probability; not for readers
FOLDER/design.json       how the sample was drawn
FOLDER/reader1.csv .html a reader's sheet, in an order of its own, without any labeller's labels
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cxrlt_ray.data.readers.columns import Sheet, counted
from cxrlt_ray.data.table_file import read_table_file
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling.consensus import UNREAD
from cxrlt_ray.labelling.labels import STUDY, SUBJECT
from cxrlt_ray.labelling.matching import WEIGHT
from cxrlt_ray.labelling.page import page
from cxrlt_ray.labelling.sheets import write_csv, write_text
from cxrlt_ray.privacy import private_dir
from cxrlt_ray.storage import Store

ITEM, READ, REPORT = "item", "read", "report"
DESIGN_FILE, RECORD, VERSION = "design.csv", "design.json", 1


@dataclass(frozen=True)
class Design:
    """A drawn sample. table: index item; study_id, subject_id (perhaps empty), inclusion_probability."""

    table: pd.DataFrame
    findings: tuple[str, ...]
    about: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(
        cls, chances: pd.Series, subjects: pd.Series | None, findings: Sequence[str], about: Mapping[str, object]
    ) -> Design:
        """The design of studies in random order with their inclusion probabilities. subjects: by study, if known."""
        own = "" if subjects is None else subjects.reindex(chances.index).fillna("").to_numpy()
        items = [f"item{k:0{len(str(len(chances)))}d}" for k in range(1, len(chances) + 1)]
        columns = {STUDY: chances.index, SUBJECT: own, WEIGHT: chances.to_numpy()}
        return cls(pd.DataFrame(columns, index=pd.Index(items, name=ITEM)), tuple(findings), dict(about))

    def write(self, folder: str) -> None:
        """Write the design. Raises UsageError where the folder has one, which readers may be filling in."""
        store = Store(folder)
        if store.exists(RECORD):
            raise UsageError(f"{folder} has a sample already: give another --out, or remove that one.")
        if store.local is not None:
            private_dir(store.local)
        table = self.table.reset_index()
        write_csv(table, f"{folder}/{DESIGN_FILE}")
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        store.write_json(RECORD, {"version": VERSION, "created": created, "findings": self.findings, **self.about})

    @classmethod
    def read(cls, folder: str) -> Design:
        """What `write` wrote. Raises UsageError for another folder, CxrltError for a design that was changed."""
        store = Store(folder)
        if not store.exists(RECORD) or not store.exists(DESIGN_FILE):
            raise UsageError(f"{folder} holds no {RECORD} and {DESIGN_FILE} of `gold sample`.")
        about = store.read_json(RECORD)
        if about.get("version") != VERSION:
            raise UsageError(f"{folder}/{RECORD} is of version {about.get('version')}; this is {VERSION}.")
        file = read_table_file(store, DESIGN_FILE, text=(ITEM, STUDY, SUBJECT, WEIGHT))
        sheet = Sheet(DESIGN_FILE, file.table)
        sheet.need(ITEM, STUDY, SUBJECT, WEIGHT)
        table = pd.DataFrame({name: sheet.text(name).map(_written) for name in (ITEM, STUDY, SUBJECT)})
        table[WEIGHT] = pd.to_numeric(sheet.text(WEIGHT), errors="coerce").to_numpy()
        if len(table) != about.get("sampled") or not table[WEIGHT].between(0, 1, inclusive="right").all():
            raise CxrltError(f"{folder}/{DESIGN_FILE} is not as it was written: draw the sample anew by the same seed.")
        return cls(table.set_index(ITEM), tuple(about["findings"]), about)


def write_sheets(
    design: Design,
    folder: str,
    readers: int,
    reports: Mapping[str, str] | None,
    definitions: Mapping[str, str],
    seed: int,
) -> list[str]:
    """A CSV and a page for each reader, each in its own order; the names of the readers.

    reports: texts by study; without them the study's id stands in the sheets. definitions: by finding.
    """
    names = [f"reader{k + 1}" for k in range(readers)]
    for k, name in enumerate(names):
        order = np.random.default_rng([seed, k + 1]).permutation(len(design.table))
        studies = design.table[STUDY].iloc[order]
        sheet = pd.DataFrame({ITEM: studies.index, READ: ""})
        shown = {STUDY: studies.to_numpy()} if reports is None else {REPORT: [reports[s] for s in studies]}
        sheet = sheet.assign(**shown, **dict.fromkeys(design.findings, ""))
        write_csv(sheet, f"{folder}/{name}.csv")
        head = {"study": STUDY} if reports is None else {"report": REPORT}
        items = [
            {"item": row[ITEM], **{key: row[column] for key, column in head.items()}}
            for row in sheet.to_dict("records")
        ]
        sheet_id = f"{design.about.get('digest', '')} {name}"
        found = {finding: definitions.get(finding, "") for finding in design.findings}
        write_text(page(name, sheet_id, items, found), f"{folder}/{name}.html")
    return names


@dataclass(frozen=True)
class FilledSheet:
    """What a reader filled in. values: int8 [N, C] in the design's order, UNREAD where a study was not read.

    reports: by item, where the sheet has them.
    """

    values: np.ndarray
    reports: pd.Series | None
    notes: tuple[str, ...]


def read_filled_sheet(path: str, design: Design) -> FilledSheet:
    """A filled-in sheet. A blank cell of a report that was read is 0: the finding is not there.

    A report counts as read where `read` is filled in or any label is. Raises UsageError for a table that is no sheet of
    this design, CxrltError, naming the row, for a cell that is no label.
    """
    store, name = Store.holding(path)
    file = read_table_file(store, name, text=(ITEM, READ, REPORT), known=design.findings)
    sheet = Sheet(name, file.table)
    sheet.need(ITEM, *design.findings)
    items = sheet.text(ITEM)
    if items.duplicated().any():
        raise CxrltError(f"{path}: {counted(int(items.duplicated().sum()), 'row')} repeat an item: keep one of each.")
    if unknown := int((~items.isin(design.table.index)).sum()):
        raise UsageError(f"{path}: {counted(unknown, 'row')} are of no item of this sample: is it another one's sheet?")
    labels = {finding: sheet.labels(finding, (0, 1, -1)) for finding in design.findings}
    for finding, column in labels.items():
        if column.bad:
            raise CxrltError(f"{path}: column '{finding}', {column.first_bad()}: a label is 1, 0, -1 or empty.")
    codes = np.stack([column.codes for column in labels.values()], axis=1)
    known = np.stack([column.known for column in labels.values()], axis=1)
    marked = ~sheet.text(READ).str.lower().isin(["", "0", "no", "n", "false"]).to_numpy()
    read = marked | known.any(axis=1)
    values = np.where(read[:, None], np.where(known, codes, 0), UNREAD)
    full = pd.DataFrame(values, items).reindex(design.table.index, fill_value=UNREAD).to_numpy(np.int8)
    notes = [f"{path}: {int((full[:, 0] != UNREAD).sum()):,} of {len(full):,} reports are read."]
    if inferred := int((read & ~marked).sum()):
        notes.append(
            f"{path}: {counted(inferred, 'report')} without a mark in column 'read' have labels: taken as read."
        )
    reports = sheet.text(REPORT).set_axis(items) if REPORT in sheet.columns else None
    return FilledSheet(full, reports, tuple(notes))


def adjudication(design: Design, open_cells: np.ndarray, readings: Mapping[str, FilledSheet]) -> pd.DataFrame:
    """A row a study and finding on which readers differ: what each says, and an empty `label` to be filled in."""
    rows, columns = np.nonzero(open_cells)
    table = pd.DataFrame({ITEM: design.table.index[rows], "finding": np.array(design.findings)[columns]})
    table[STUDY] = design.table[STUDY].to_numpy()[rows]
    for name, reading in readings.items():
        said = reading.values[rows, columns]
        table[name] = pd.array(np.where(said == UNREAD, 0, said), "Int8")
        table.loc[said == UNREAD, name] = pd.NA
    texts = next((reading.reports for reading in readings.values() if reading.reports is not None), None)
    if texts is not None:
        table[REPORT] = texts.reindex(table[ITEM]).fillna("").to_numpy()
    return table.assign(label="")


def adjudicated(path: str, design: Design, values: np.ndarray, open_cells: np.ndarray) -> tuple[np.ndarray, int]:
    """The consensus with the labels of a filled-in adjudication list, and how many are still open.

    Raises UsageError for rows of other items or findings, and for a label that is given twice and differs.
    """
    store, name = Store.holding(path)
    file = read_table_file(store, name, text=(ITEM, "finding"))
    sheet = Sheet(name, file.table)
    sheet.need(ITEM, "finding", "label")
    labels = sheet.labels("label", (0, 1, -1))
    if labels.bad:
        raise CxrltError(f"{path}: column 'label', {labels.first_bad()}: a label is 1, 0, -1 or empty.")
    rows = design.table.index.get_indexer(sheet.text(ITEM))
    columns = pd.Index(design.findings).get_indexer(sheet.text("finding"))
    if wrong := int(((rows < 0) | (columns < 0)).sum()):
        raise UsageError(f"{path}: {counted(wrong, 'row')} of no item or finding of this sample.")
    settled = values.copy()
    known = labels.known & open_cells[rows, columns]
    settled[rows[known], columns[known]] = labels.codes[known]
    if twice := int((settled[rows[known], columns[known]] != labels.codes[known]).sum()):
        raise UsageError(f"{path}: {counted(twice, 'label')} given twice and differently: leave one row of each.")
    left = open_cells.copy()
    left[rows[known], columns[known]] = False
    return settled, int(left.sum())


def gold_table(design: Design, values: np.ndarray) -> pd.DataFrame:
    """The gold standard: a row a study that was read, empty where readers are not agreed."""
    read = ~(values == UNREAD).all(axis=1)
    labels = pd.DataFrame(values[read], columns=list(design.findings)).astype("Int8")
    labels = labels.mask(labels < -1)
    return pd.concat([design.table[read].reset_index(drop=True), labels], axis=1)


def as_csv(table: pd.DataFrame) -> str:
    """A table as text, for a digest."""
    buffer = io.StringIO()
    table.to_csv(buffer)
    return buffer.getvalue()


def _written(text: str) -> str:
    """A cell as it was before it was made inert."""
    return text[1:] if text[:1] == "'" and text[1:2] in "=+-@" else text
