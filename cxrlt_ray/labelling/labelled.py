"""Reports -> tables of labels and evidence: in this process, or, from RAY_FROM reports on, by Ray Data.

A worker keeps its labeller, and with it the sentences that it has read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cxrlt_ray.labelling.labeller import Labeller, Reading
from cxrlt_ray.labelling.labels import Evidence, StudyLabels, as_tables
from cxrlt_ray.labelling.reports import Piece, Report, Reports
from cxrlt_ray.labelling.rules import Rules, load_rules

if TYPE_CHECKING:
    import pyarrow as pa

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
    if reports.count < RAY_FROM:
        for piece in reports.pieces:
            yield _tables(piece, reports, rule_set)
        return
    yield from _by_ray(reports, rule_set, address)


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


def _by_ray(reports: Reports, rule_set: RuleSet, address: str | None) -> Iterator[tuple[pa.Table, pa.Table]]:
    from cxrlt_ray.cluster.start import start_ray

    ray = start_ray(address)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    opener = Reports(reports.count, reports.id_column, iter(()), reports.root)

    def label_piece(row: dict[str, Any]) -> dict[str, Any]:
        labels, evidence = _tables(row["piece"], opener, rule_set)
        return {"labels": _packed(labels), "evidence": _packed(evidence)}

    pieces = [{"piece": list(piece)} for piece in reports.pieces]
    dataset = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map(label_piece)
    for row in dataset.iter_rows():
        yield _unpacked(row["labels"]), _unpacked(row["evidence"])


def _packed(table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _unpacked(content: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(content).read_all()
