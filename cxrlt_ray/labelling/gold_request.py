"""All that can be asked of `gold`, checked in one place: what the command's options fill."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.gold import Shares

SAMPLE, MERGE = "sample", "merge"
# options that one of the two actions has alone
_OF_SAMPLE = ("studies", "readers", "reports", "text_column", "findings", "id_column", "shares", "seed")
_OF_MERGE = ("labels", "adjudicated", "uncertain", "rounds")


class GoldRequest(Config):
    """What is asked of `gold`: the options of the command, with their defaults. Raises UsageError for a wrong one."""

    action: Annotated[str, cli.argument("sample: draw studies, write sheets; merge: join the readers' sheets")]
    files: Annotated[list[str], cli.argument("sample: tables of labels. merge: the sample's folder, filled-in sheets")]
    out: Annotated[str | None, cli.option("sample: the folder, default gold. merge: the gold standard's .csv")] = None
    studies: Annotated[int, cli.option("sample: number of studies to label by hand")] = 200
    readers: Annotated[int, cli.option("sample: number of readers")] = 2
    reports: Annotated[str | None, cli.option("sample: the reports; the sheets then contain their texts")] = None
    text_column: Annotated[list[str] | None, cli.option("sample: the reports' text columns, as for label")] = None
    findings: Annotated[list[str] | None, cli.option("sample: these findings; default: all that the tables share")] = (
        None
    )
    id_column: Annotated[str | None, cli.option("sample: the column of study ids")] = None
    shares: Annotated[list[float] | None, cli.option("sample: shares of chance, findings, disagreements: 30 40 30")] = (
        None
    )
    seed: Annotated[int, cli.option("sample: seed of the draw")] = 0
    labels: Annotated[list[str] | None, cli.option("merge: tables of labels to evaluate with the gold standard")] = None
    adjudicated: Annotated[str | None, cli.option("merge: the adjudication list, filled in")] = None
    uncertain: Annotated[str, cli.option("merge: a labeller's -1 counts as: zero, one, null")] = "zero"
    rounds: Annotated[int, cli.option("merge: bootstrap rounds of the intervals")] = 1000

    @model_validator(mode="after")
    def _check(self) -> GoldRequest:
        if self.action not in (SAMPLE, MERGE):
            raise UsageError(f"gold {self.action}: the action is {SAMPLE} or {MERGE}.")
        others = _OF_MERGE if self.action == SAMPLE else _OF_SAMPLE
        if foreign := [name for name in others if name in self.model_fields_set]:
            raise UsageError(f"--{foreign[0].replace('_', '-')} is not for gold {self.action}: leave it out.")
        for name in ("studies", "readers", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1, not {getattr(self, name)}.")
        if self.uncertain not in ("zero", "one", "null"):
            raise UsageError(f"--uncertain takes zero, one, null, not '{self.uncertain}'.")
        if self.action == MERGE and len(self.files) < 2:
            raise UsageError("gold merge needs the sample's folder and at least one sheet that was filled in.")
        if self.action == MERGE and self.out and not self.out.endswith(".csv"):
            raise UsageError(f"--out {self.out} must end in .csv.")
        if self.text_column and not self.reports:
            raise UsageError("--text-column is of --reports: give both.")
        _ = self.mixture
        return self

    @property
    def mixture(self) -> Shares:
        """How much of the sample each part gets."""
        if self.shares is None:
            return Shares()
        if len(self.shares) != 3 or min(self.shares) < 0 or not self.shares[0] > 0:
            raise UsageError("--shares are three numbers, the first above 0: of chance, findings and disagreements.")
        total = sum(self.shares)
        return Shares(*(share / total for share in self.shares))
