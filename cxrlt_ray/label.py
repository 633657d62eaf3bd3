"""`python -m cxrlt_ray.label REPORTS --out labels.csv`: the labels of studies, from their radiology reports.

By rules (label_rules/, docs/labels.md): more than 500 reports of MIMIC's length per CPU second, before repeated
sentences are cached. Fewer than 20,000 reports are labelled in this process, more by Ray Data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cxrlt_ray import cli, output
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling.labelled import RuleSet, labelled
from cxrlt_ray.labelling.labels import FOREIGN, NOTHING, SOURCE, written
from cxrlt_ray.labelling.llm.labeller import labelled_by_llm
from cxrlt_ray.labelling.reports import Reports, read_reports
from cxrlt_ray.labelling.request import LabelRequest

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LabelRequest", "main", "run"]


def run(request: LabelRequest) -> None:
    """Label the reports, and write labels.csv and evidence.parquet.

        from cxrlt_ray import label
        label.run(label.LabelRequest(reports="/data/mimic-cxr", out="labels.csv"))

    Raises UsageError for wrong rules and for input without reports, CxrltError for a study with two reports.
    """
    rule_set = _rule_set(request)
    if request.check:
        return _check(rule_set)
    assert request.reports is not None
    rules = rule_set.load()
    reports = read_reports(request.reports, request.id_column, request.text_column)
    if request.explain is not None:
        return _explain(reports, rule_set, request.explain)
    if request.by == "llm":
        tables = labelled_by_llm(request, reports, rule_set)
    else:
        tables = labelled(reports, rule_set, request.address)
    if tables is None:  # --plan
        return
    with written(request.out, reports.id_column, rules.names) as write:
        for labels, evidence in _counted(tables, reports, request.reports):
            write(labels, evidence)
    output.result(f"Left in {request.out}; what each label stands on in evidence.parquet beside it.", [request.out])


def _rule_set(request: LabelRequest) -> RuleSet:
    findings = tuple(request.findings) if request.findings else None
    blockers = tuple(request.normal_blocked_by)
    return RuleSet(request.rules, findings, blockers, request.hierarchy, request.uncertain)


def _check(rule_set: RuleSet) -> None:
    """Run all examples. Raises CxrltError if one gets another label."""
    from cxrlt_ray.labelling.examples import clashes, count_examples

    rules = rule_set.load()
    found = clashes(rules)
    for clash in found:
        cli.say(f"- {clash}")
    if found:
        raise CxrltError(f"{len(found):,} clashes in the rule files; correct the phrases or the examples.")
    output.result(f"{count_examples(rules):,} examples of {len(rules.every)} findings are labelled as they say.")


def _explain(reports: Reports, rule_set: RuleSet, study: str) -> None:
    """Print a report with annotations."""
    from cxrlt_ray.labelling.labeller import Labeller
    from cxrlt_ray.reporting.labels import marked

    report = next(reports.of([study]), None)
    if report is None:
        raise UsageError("--explain: there is no report of that study; ids are as the input writes them.")
    output.result(marked(report.text, Labeller(rule_set.load()).read(report.text)))


def _counted(
    tables: Iterator[tuple[pa.Table, pa.Table]], reports: Reports, where: str
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The tables as they arrive, with lines of progress; at the end, notes on all of them.

    Raises UsageError where there are none.
    """
    import pyarrow.compute as pc

    from cxrlt_ray.reporting.labels import normal_share

    studies = normal = foreign = empty = 0
    for labels, evidence in cli.with_progress(tables, reports.count, cli.say, lambda t: t[0].num_rows, "reports"):
        studies += labels.num_rows
        sources = labels[SOURCE]
        foreign += pc.sum(pc.equal(sources, FOREIGN)).as_py() or 0
        empty += pc.sum(pc.equal(sources, NOTHING)).as_py() or 0
        if "Normal" in labels.column_names:
            normal += pc.sum(pc.equal(labels["Normal"], 1)).as_py() or 0
        yield labels, evidence
    if not studies:
        raise UsageError(f"there are no reports to label: {where} has no rows.")
    for note in reports.notes:
        cli.say(note)
    if foreign:
        cli.say(f"Warning: {foreign:,} of {studies:,} reports are not in English: their labels are empty.")
    if empty:
        cli.say(f"Warning: {empty:,} of {studies:,} reports have no text that is read: their labels are empty.")
    if "Normal" in labels.column_names:
        cli.say(normal_share(normal, studies))


main = cli.command(
    LabelRequest,
    run,
    """Label radiology reports with the 45 findings.

    python -m cxrlt_ray.label /data/mimic-cxr --out labels.csv
    """,
    many=("--findings", "--text-column", "--normal-blocked-by"),
)


if __name__ == "__main__":
    cli.run("label")
