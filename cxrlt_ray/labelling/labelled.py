"""Reports -> tables of labels and evidence: in this process, or, from RAY_FROM reports on, by Ray Data.

A worker keeps its labeller, and with it the sentences that it has read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from cxrlt_ray.labelling.labeller import Labeller, Reading
from cxrlt_ray.labelling.labels import Evidence, StudyLabels, as_tables
from cxrlt_ray.labelling.reports import Piece, Report, Reports
from cxrlt_ray.labelling.rules import Rules, load_rules

if TYPE_CHECKING:
    import pyarrow as pa

P = TypeVar("P")
RAY_FROM = 20_000  # reports, below which starting Ray takes longer than labelling them


@dataclass(frozen=True)
class RuleSet:
    """What `load_rules` is asked for, and the policy for uncertain: what a worker needs to label."""

    folder: str | None
    findings: tuple[str, ...] | None
    blockers: tuple[Any, ...]
    hierarchy: bool
    uncertain: str

    def load(self) -> Rules:
        """The rules."""
        return load_rules(self.folder, self.findings, self.blockers, self.hierarchy)

    def policies(self, rules: Rules) -> dict[str, str]:
        """The policy for uncertain of each finding asked for."""
        own = self.uncertain == "policy"
        return {rule.finding: rule.uncertain if own else self.uncertain for rule in rules.findings}


def labelled(reports: Reports, rule_set: RuleSet, address: str | None = None) -> Iterator[tuple[pa.Table, pa.Table]]:
    """(labels, evidence) of the reports, in pieces, in their order."""
    work = partial(_tables, reports=reports.opener(), rule_set=rule_set)
    for tables in over_pieces(reports.pieces, work, reports.count, address):
        labels, evidence = tables
        yield labels, evidence


def over_pieces(
    pieces: Iterable[P], work: Callable[[P], tuple[pa.Table, ...]], count: int, address: str | None = None
) -> Iterator[tuple[pa.Table, ...]]:
    """The tables that `work` makes of each piece, in their order: here, or by Ray Data of RAY_FROM reports or more.

    count: reports in all pieces. work: it is sent to Ray's workers, and so are the pieces.
    """
    if count < RAY_FROM:
        yield from map(work, pieces)
        return
    from cxrlt_ray.cluster.start import start_ray

    ray = start_ray(address)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False

    def packed_tables(row: dict[str, Any]) -> dict[str, Any]:
        return {str(k): packed(table) for k, table in enumerate(work(row["piece"]))}

    rows = [{"piece": piece} for piece in pieces]
    dataset = ray.data.from_items(rows, override_num_blocks=max(len(rows), 1)).map(packed_tables)
    for row in dataset.iter_rows():
        yield tuple(unpacked(row[str(k)]) for k in range(len(row)))


def study_labels(report: Report, reading: Reading, names: tuple[str, ...]) -> StudyLabels:
    """A report's reading as its labels; evidence in the places of the original text."""
    evidence = []
    for span in reading.spans:
        if span.value is not None and span.finding in names:
            column, start = report.cell_at(span.begin)
            place = span.section, span.sentence, span.begin - start, span.end - start
            evidence.append(
                Evidence(report.study_id, span.finding, span.value, column, *place, span.phrase, span.trigger)
            )
    return StudyLabels(report.study_id, report.subject_id, reading.labels, tuple(evidence), reading.source)


def _tables(piece: Piece, reports: Reports, rule_set: RuleSet) -> tuple[pa.Table, pa.Table]:
    labeller, policies = _ready(rule_set)
    names = labeller.rules.names
    studies = [study_labels(report, labeller.read(report.text), names) for report in reports.read(piece)]
    return as_tables(studies, reports.id_column, names, policies)


@lru_cache(maxsize=2)
def _ready(rule_set: RuleSet) -> tuple[Labeller, dict[str, str]]:
    rules = rule_set.load()
    return Labeller(rules), rule_set.policies(rules)


def packed(table: pa.Table) -> bytes:
    """A table as bytes, to be sent to another process."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpacked(content: bytes) -> pa.Table:
    """The table that `packed` was given."""
    import pyarrow as pa

    return pa.ipc.open_stream(content).read_all()
