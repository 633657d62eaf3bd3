"""`python -m cxrlt_ray.gold sample|merge`: hand labels of a sample with rare and disputed findings.

`sample` draws studies with recorded probabilities and writes a blinded sheet for each reader, as CSV and as a page;
`merge` combines the filled-in sheets: agreement, consensus, cases to adjudicate, and the performance of each labeller
on all studies, by sampling weights.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from cxrlt_ray import cli, output
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling import gold_folder
from cxrlt_ray.labelling.agreement import Agreement, compare
from cxrlt_ray.labelling.consensus import UNREAD, consensus, pairwise
from cxrlt_ray.labelling.gold import sample
from cxrlt_ray.labelling.gold_folder import Design, FilledSheet
from cxrlt_ray.labelling.gold_request import SAMPLE, GoldRequest
from cxrlt_ray.labelling.matching import Treatment, match, named
from cxrlt_ray.labelling.sheets import write_csv
from cxrlt_ray.reporting import agreement as report
from cxrlt_ray.reporting.gold import readers_table

__all__ = ["GoldRequest", "main", "run"]


def run(request: GoldRequest) -> Design | Agreement | None:
    """Draw a sample and return its design, or merge sheets and return the agreement with --labels, if given.

        from cxrlt_ray import gold
        gold.run(gold.GoldRequest(action="sample", files=["rules.csv", "llm.csv"], reports="reports.csv"))

    Raises UsageError if files do not fit each other.
    """
    return _sample(request) if request.action == SAMPLE else _merge(request)


def _sample(request: GoldRequest) -> Design:
    folder = (request.out or "gold").rstrip("/")
    matched = match(request.files[0], request.files, request.findings, request.id_column)
    for note in matched.notes:
        print(note)
    tables = list(matched.tables.values())
    chances = sample(tables, request.studies, request.mixture, request.seed)
    about = {
        "studies": len(tables[0]),
        "sampled": len(chances),
        "seed": request.seed,
        "shares": vars(request.mixture),
        "labels": list(named(request.files).values()),
        "digest": hashlib.sha256(gold_folder.as_csv(chances.to_frame()).encode()).hexdigest()[:16],
    }
    subjects = pd.Series(matched.subjects, tables[0].index) if matched.has_subjects else None
    design = Design.of(chances, subjects, matched.findings, about)
    texts = None if request.reports is None else _texts(request, design)
    design.write(folder)
    names = gold_folder.write_sheets(
        design, folder, request.readers, texts, _definitions(matched.findings), request.seed
    )
    rare = min(chances)
    print(
        f"{len(chances):,} of {len(tables[0]):,} studies in {folder}: {gold_folder.DESIGN_FILE} holds their inclusion "
        f"probabilities ({rare:.2g} to {max(chances):.2g}) and is not for readers."
    )
    sheets = [f"{folder}/{name}.csv" for name in names]
    output.result(
        f"Give each reader one of {', '.join(sheets)}, or the page of the same name (.html). They hold "
        f"{'ids' if texts is None else 'reports'} of patients.\n"
        f"Next: python -m cxrlt_ray.gold merge {folder} {' '.join(sheets)} --labels {' '.join(request.files)}",
        [f"{folder}/{gold_folder.DESIGN_FILE}", *sheets],
        sampled=len(chances),
    )
    return design


def _texts(request: GoldRequest, design: Design) -> dict[str, str]:
    """The reports of the sample by study. Raises UsageError if some are missing."""
    from cxrlt_ray.labelling.reports import read_reports

    assert request.reports is not None
    wanted = set(design.table[gold_folder.STUDY])
    reports = read_reports(request.reports, request.id_column, request.text_column)
    texts = {report.study_id: report.text for report in reports.of(wanted)}
    if lacking := len(wanted - texts.keys()):
        raise UsageError(f"{request.reports} has no report of {lacking:,} of the {len(wanted):,} studies drawn.")
    return texts


def _definitions(findings: tuple[str, ...]) -> dict[str, str]:
    """The definitions of findings from their rule files, for those that have one."""
    from cxrlt_ray.labelling.rules import load_rules

    return {rule.finding: rule.definition for rule in load_rules().every if rule.finding in findings}


def _merge(request: GoldRequest) -> Agreement | None:
    folder, *paths = request.files
    folder = folder.rstrip("/")
    design = Design.read(folder)
    readings = {name: gold_folder.read_filled_sheet(path, design) for path, name in named(paths).items()}
    for reading in readings.values():
        print("\n".join(reading.notes))
    values = np.stack([reading.values for reading in readings.values()])
    if (values == UNREAD).all():
        raise UsageError("no report is read yet: fill in the sheets, and put 1 in column 'read' of each report read.")
    if len(readings) > 1:
        cli.console().print(readers_table(pairwise(values, list(readings), design.findings)))
    out = request.out or f"{folder}/gold.csv"
    _leave_gold(request, design, readings, values, out)
    if not request.labels:
        output.result(f"Next: python -m cxrlt_ray.agree {out} LABELS.csv", [out])
        return None
    matched = match(out, request.labels)
    treatment = Treatment(uncertain=request.uncertain)
    agreement = compare(matched, treatment, request.rounds)
    console = cli.console()
    for line in (*matched.notes, *treatment.lines):
        console.print(line, soft_wrap=True)
    report.show(console, agreement)
    output.result("", [out])
    return agreement


def _leave_gold(
    request: GoldRequest, design: Design, readings: dict[str, FilledSheet], values: np.ndarray, out: str
) -> None:
    """Write the gold standard and the cases to adjudicate, and print the number of labels of each kind."""
    agreed = consensus(values)
    labels, left = agreed.values, int(agreed.open.sum())
    if request.adjudicated:
        labels, left = gold_folder.adjudicated(request.adjudicated, design, labels, agreed.open)
    table = gold_folder.gold_table(design, labels)
    write_csv(table, out)
    single, unread = int((agreed.readers == 1).sum()), int((agreed.readers == 0).sum())
    print(
        f"{out}: {len(table):,} studies, {int((labels != UNREAD).sum()) - left:,} labels, {left:,} open. "
        f"{single:,} studies were read by one reader, {unread:,} by none"
        f"{': these are left out, as if by chance' if unread else ''}."
    )
    if agreed.open.any() and not request.adjudicated:
        name = str(PurePosixPath(out).with_name("adjudicate.csv"))
        write_csv(gold_folder.adjudication(design, agreed.open, readings), name)
        print(f"On {left:,} labels readers differ: fill in column `label` of {name} and give it by --adjudicated.")


main = cli.command(
    GoldRequest,
    run,
    """Draw studies to label by hand, or merge the sheets that readers filled in.

    python -m cxrlt_ray.gold sample rules.csv llm.csv --studies 300 --reports reports.csv --out gold
    python -m cxrlt_ray.gold merge gold gold/reader1.csv gold/reader2.csv --labels rules.csv llm.csv
    """,
    many=("--labels", "--findings", "--shares", "--text-column"),
)


if __name__ == "__main__":
    cli.run("gold")
