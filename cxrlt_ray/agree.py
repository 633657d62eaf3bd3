"""`python -m cxrlt_ray.agree GOLD A.csv [B.csv ...]`: compare labellers with hand labels.

The form of the paper's table 8, with recall, F1, Cohen's kappa and PABAK, intervals by subject, and paired differences
between the first labeller and the others. If GOLD was written by `gold merge`, its sampling weights are used.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli, output
from cxrlt_ray.config import Config
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.agreement import Agreement, compare, disagreements, read_evidence
from cxrlt_ray.labelling.matching import Matched, Treatment, match, named
from cxrlt_ray.labelling.sheets import write_csv
from cxrlt_ray.reporting import agreement as report

__all__ = ["AgreeRequest", "main", "run"]


class AgreeRequest(Config):
    """The options of `agree`, with their defaults. Raises UsageError for a wrong one."""

    gold: Annotated[str, cli.argument("the hand labels: a table with one row per study")]
    labels: Annotated[list[str], cli.argument("tables of labels to compare; the first minus the others")]
    findings: Annotated[list[str] | None, cli.option("findings to compare; default: all that the tables share")] = None
    id_column: Annotated[str | None, cli.option("the column of study ids; default: study_id or report_id")] = None
    where: Annotated[str | None, cli.option("COLUMN=VALUE: the gold's rows to use, such as part=dev")] = None
    uncertain: Annotated[str, cli.option("a labeller's -1 counts as: zero, one, null (left out)")] = "zero"
    blank: Annotated[str, cli.option("a labeller's empty cell counts as: zero, null (left out)")] = "zero"
    gold_uncertain: Annotated[str, cli.option("the gold's -1: zero, one, null (left out)")] = "null"
    gold_blank: Annotated[str, cli.option("the gold's empty cell: zero, null (left out)")] = "null"
    least_positives: Annotated[int, cli.option("positives in the gold that a finding needs to count in the mean")] = 1
    rounds: Annotated[int, cli.option("bootstrap rounds of the intervals")] = 1000
    seed: Annotated[int, cli.option("seed of the bootstrap")] = 0
    out: Annotated[str | None, cli.option("write all figures, with intervals, to this .csv")] = None
    disagreements: Annotated[str | None, cli.option("write the disagreements, with evidence, to this .csv")] = None

    @model_validator(mode="after")
    def _check(self) -> AgreeRequest:
        for name, allowed in {"uncertain": ("zero", "one", "null"), "blank": ("zero", "null")}.items():
            for option in (name, f"gold_{name}"):
                if getattr(self, option) not in allowed:
                    raise UsageError(
                        f"--{option.replace('_', '-')} takes {', '.join(allowed)}, not '{getattr(self, option)}'."
                    )
        for name in ("rounds", "least_positives"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        for name in ("out", "disagreements"):
            if getattr(self, name) and not getattr(self, name).endswith(".csv"):
                raise UsageError(f"--{name} {getattr(self, name)} must end in .csv.")
        return self

    @property
    def treatment(self) -> Treatment:
        """What uncertain and blank cells count as."""
        return Treatment(self.uncertain, self.blank, self.gold_uncertain, self.gold_blank)


def run(request: AgreeRequest) -> Agreement:
    """Compare tables of labels with hand labels; print the tables, and write the requested files.

        from cxrlt_ray import agree
        agreement = agree.run(agree.AgreeRequest(gold="gold.csv", labels=["rules.csv", "llm.csv"]))
        agreement.rates["rules"].macro["precision"]

    Raises UsageError where the tables do not fit each other.
    """
    console = cli.console()
    matched = match(request.gold, request.labels, request.findings, request.id_column, request.where)
    for line in (*matched.notes, *request.treatment.lines):
        console.print(line, soft_wrap=True)
    with console.status("Resampling subjects"):
        agreement = compare(matched, request.treatment, request.rounds, request.seed, request.least_positives)
    report.show(console, agreement)
    lines = []
    if request.out:
        write_csv(agreement.frame(), request.out)
        lines.append(f"Left in {request.out}.")
    if request.disagreements:
        lines.append(_leave_disagreements(request, matched))
    paths = [path for path in (request.out, request.disagreements) if path]
    means = {name: rates.macro for name, rates in agreement.rates.items()}
    output.result("\n".join(lines), paths, studies=agreement.studies, means=means)
    return agreement


def _leave_disagreements(request: AgreeRequest, matched: Matched) -> str:
    """Write the disagreements; returns a line that says so."""
    assert request.disagreements is not None
    read = {name: read_evidence(path) for path, name in named(request.labels).items()}
    evidence = {name: mentions for name, mentions in read.items() if mentions is not None}
    table = disagreements(matched, request.treatment, evidence)
    write_csv(table, request.disagreements)
    told = (
        f"with the evidence of {', '.join(evidence)}" if evidence else "without evidence: no evidence.parquet is there"
    )
    return f"{len(table):,} disagreements left in {request.disagreements}, {told}. It holds ids of studies."


main = cli.command(
    AgreeRequest,
    run,
    """Compare labels with hand labels.

    python -m cxrlt_ray.agree gold.csv rules.csv llm.csv
    python -m cxrlt_ray.agree gold.csv rules.csv --uncertain one --disagreements differ.csv
    """,
    many=("--findings",),
)


if __name__ == "__main__":
    cli.run("agree")
