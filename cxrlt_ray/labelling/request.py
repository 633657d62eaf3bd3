"""All that can be asked of `label`, checked in one place: what the command's options fill."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.rules import POLICIES


class LabelRequest(Config):
    """What is asked of `label`: the options of the command, with their defaults. Raises UsageError for a wrong one."""

    reports: Annotated[str, cli.argument("MIMIC's tree of reports, or a table with a column of text")]
    out: Annotated[str, cli.option("leave the labels here; evidence.parquet beside them")] = "labels.csv"
    by: Annotated[str, cli.option("rules or llm")] = "rules"
    findings: Annotated[list[str] | None, cli.option("label these findings; all 45 without it")] = None
    rules: Annotated[str | None, cli.option("a folder of your own rule files, which come first")] = None
    uncertain: Annotated[str, cli.option("-1: keep, one, zero, null, or policy (each finding's own)")] = "keep"
    id_column: Annotated[str | None, cli.option("a table's column of studies' ids; study_id without it")] = None
    text_column: Annotated[list[str] | None, cli.option("a table's columns of text")] = None

    @model_validator(mode="after")
    def _check(self) -> LabelRequest:
        if self.uncertain not in (*POLICIES, "policy"):
            raise UsageError(f"--uncertain takes {', '.join((*POLICIES, 'policy'))}, not '{self.uncertain}'.")
        return self
