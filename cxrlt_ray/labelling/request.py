"""All that can be asked of `label`, checked in one place: what the command's options fill.

from cxrlt_ray import label
label.run(label.LabelRequest(reports="/data/mimic-cxr", out="labels.csv"))
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import model_validator

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.llm.options import LlmOptions, check_options
from cxrlt_ray.labelling.rules import POLICIES

POLICY = "policy"
ENGINES = ("rules", "llm")
GROUPS = ("cardiopulmonary", "bones", "devices")


class LabelOptions(Config):
    """Options of `label`, whatever reads the reports. Raises UsageError for a wrong one."""

    reports: Annotated[str | None, cli.argument("MIMIC's tree of reports, or a table with a text column")] = None
    out: Annotated[str, cli.option("write the labels to this .csv, and evidence.parquet beside it")] = "labels.csv"
    by: Annotated[str, cli.option("what reads the reports: rules or llm")] = "rules"
    findings: Annotated[list[str] | None, cli.option("findings to label; default: all 45")] = None
    rules: Annotated[str | None, cli.option("a folder with your own rule files, which take precedence")] = None
    uncertain: Annotated[str, cli.option("-1 becomes: keep, one, zero, null, or policy (each finding's own)")] = "keep"
    id_column: Annotated[str | None, cli.option("a table's column of study ids; default: study_id")] = None
    text_column: Annotated[list[str] | None, cli.option("a table's text columns; detected by name by default")] = None
    normal_blocked_by: Annotated[
        list[str], cli.option("what keeps a report from being Normal: cardiopulmonary, bones, devices")
    ] = ["cardiopulmonary"]  # noqa: RUF012
    hierarchy: Annotated[bool, cli.option("CheXpert's hierarchy: edema is an opacity, and so on", "--hierarchy")] = (
        False
    )
    explain: Annotated[str | None, cli.option("print this study's report with annotations, and label nothing")] = None
    check: Annotated[bool, cli.option("run the examples of all rule files, and label nothing", "--check")] = False
    address: Annotated[str | None, cli.option("a Ray cluster to join, for many reports")] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for option, value, allowed in (
            ("uncertain", self.uncertain, (*POLICIES, POLICY)),
            ("by", self.by, ENGINES),
            *(("normal-blocked-by", group, GROUPS) for group in self.normal_blocked_by),
        ):
            if value not in allowed:
                raise UsageError(f"--{option} takes {', '.join(allowed)}, not '{value}'.")
        if self.reports is None and not self.check:
            raise UsageError("which reports? Give a folder or a table; --check alone needs none.")
        if not self.out.lower().endswith(".csv"):
            raise UsageError(f"--out {self.out} must end in .csv.")
        return self


class LabelRequest(LlmOptions, LabelOptions):
    """What is asked of `label`: the options of the command, with their defaults. Raises UsageError for a wrong one."""

    @model_validator(mode="after")
    def _check_llm(self) -> Self:
        check_options(self, self.by == "llm")
        if self.by == "llm" and (self.check or self.explain is not None):
            raise UsageError("--check and --explain are of the rules: leave out --by llm.")
        return self
