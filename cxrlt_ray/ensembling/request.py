"""All that can be asked of `ensemble` and `predict`, checked in one place: what the commands' options fill.

from cxrlt_ray import ensemble
ensemble.run(ensemble.EnsembleRequest(select="greedy", storage="runs", run="task1-20261125-101500"))
ensemble.run(ensemble.EnsembleRequest(tables=["a.csv", "b.parquet"], targets="labels.csv"))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.data.manifest import SPLITS
from cxrlt_ray.data.score_scale import SCALES
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.critical import critical_findings
from cxrlt_ray.evaluation.thresholds import Aim
from cxrlt_ray.runs.store import DEFAULT_STORAGE

# options by where the members' predictions come from: the others go with both
OF_RUNS = {
    "run": "--run",
    "storage": "--storage",
    "split": "--split",
    "score_all": "--score-all",
    "zip": "--zip",
    "address": "--address",
    "pruned": "--pruned",
    "most": "--most",
    "report": "--no-report",
}
OF_TABLES = {
    "targets": "--targets",
    "groups": "--groups",
    "apply": "--apply",
    "findings": "--findings",
    "id_column": "--id-column",
    "drop_missing": "--drop-missing",
    "scores": "--scores",
    "out": "--out",
}

LEARNT = ("train", "val")  # whose images members learn, or are chosen on
SCORED = tuple(split for split in SPLITS if split not in LEARNT)


class EnsembleRequest(Config):
    """What is asked of `ensemble`: the options of the command, with their defaults.

    With `tables` the members are predictions in files, else a run's trials; an option of the other kind is refused
    wherever it is given, even as its default. Raises UsageError for options that do not go together.
    """

    select: Annotated[str, cli.option("a selector, a file of ensembles/, or the path of a YAML file")] = "greedy"
    run: Annotated[str | None, cli.option("the run; default: the latest")] = None
    storage: Annotated[str, cli.option("where the runs are: a directory or URI")] = DEFAULT_STORAGE
    split: Annotated[str | None, cli.option("the split to submit; default: the task's scored one")] = None
    score_all: Annotated[bool, cli.option("score the test images with every trial, to compare", "--score-all")] = False
    zip: Annotated[bool, cli.option("also write submission.zip", "--zip")] = False
    rounds: Annotated[int, cli.option("bootstrap rounds of the intervals")] = 1000
    seed: Annotated[int, cli.option("seed of bags, folds and bootstrap")] = 0
    address: Annotated[str | None, cli.option("a Ray cluster to join; auto on its head node")] = None
    costs: Annotated[str | None, cli.option("a CSV of member and cost, for selector frontier; default: GFLOPs")] = None
    tables: Annotated[
        list[str] | None, cli.option("instead of a run: one table of predictions per member, or one .npz", "--from")
    ] = None
    targets: Annotated[str | None, cli.option("with --from: the table of labels")] = None
    groups: Annotated[str | None, cli.option("with --from: the labels' column of subjects, or a table of them")] = None
    apply: Annotated[list[str] | None, cli.option("with --from: the members' tables of images to score")] = None
    findings: Annotated[list[str] | None, cli.option("with --from: only these columns")] = None
    id_column: Annotated[str | None, cli.option("with --from: the tables' column of image ids")] = None
    drop_missing: Annotated[bool, cli.option("with --from: leave out images that a member lacks", "--drop-missing")] = (
        False
    )
    scores: Annotated[
        list[str] | None, cli.option("with --from: probability, percent or logit, once or for each member")
    ] = None
    out: Annotated[str, cli.option("with --from: where to write the ensemble")] = "ensemble"
    explain: Annotated[
        bool, cli.option("explain the choice of members, and what more trials would bring", "--explain")
    ] = False
    pruned: Annotated[bool, cli.option("choose among pruned trials too", "--pruned")] = False
    most: Annotated[int | None, cli.option("number of trials to choose from; default: as many as fit into memory")] = (
        None
    )
    calibrate: Annotated[bool, cli.option("calibrate the scores, and keep the calibration", "--calibrate")] = False
    thresholds: Annotated[
        list[str] | None, cli.option("choose thresholds by aim: f1, sensitivity=0.9, critical=0.05 (FNR at most)")
    ] = None
    critical: Annotated[str | None, cli.option("with --thresholds critical=F: a YAML of your critical findings")] = None
    report: Annotated[bool, cli.option("write the run's report at the end", "--report/--no-report")] = True

    @property
    def aims(self) -> tuple[Aim, ...]:
        """What thresholds are chosen for."""
        return tuple(dict.fromkeys(Aim.parse(text) for text in self.thresholds or ()))

    def critical_among(self, findings: Sequence[str]) -> tuple[str, ...]:
        """Those of `findings` that are critical, where an aim needs them. Raises UsageError as critical_findings."""
        return critical_findings(findings, self.critical) if any(aim.kind.critical for aim in self.aims) else ()

    @property
    def is_npz(self) -> bool:
        """Whether one .npz holds all members and their labels."""
        return self.tables is not None and len(self.tables) == 1 and self.tables[0].endswith(".npz")

    @model_validator(mode="after")
    def _check(self) -> EnsembleRequest:
        if problem := self._problem_of_tables() if self.tables else self._problem_of_runs():
            raise UsageError(problem)
        if self.rounds < 1:
            raise UsageError(f"--rounds must be at least 1, not {self.rounds}.")
        if self.critical is not None and not any(aim.kind.critical for aim in self.aims):
            raise UsageError("--critical goes with --thresholds critical=F, the FNR at most.")
        return self

    def _problem_of_tables(self) -> str:
        assert self.tables is not None
        if unknown := [scale for scale in self.scores or () if scale not in SCALES]:
            return f"--scores takes {', '.join(SCALES)}, not '{unknown[0]}'."
        if given := [option for field, option in OF_RUNS.items() if field in self.model_fields_set]:
            return f"{given[0]} is for an ensemble of a run's trials: it does not go with --from."
        if self.is_npz:
            of_tables = (self.targets, self.groups, self.findings, self.id_column, self.drop_missing)
            if any(of_tables):
                only = "of the options for tables it takes --apply and --scores only"
                return f"{self.tables[0]} holds labels and all: {only}."
        elif not self.targets:
            return "--targets is missing: the table of labels that goes with the predictions of --from."
        return ""

    def _problem_of_runs(self) -> str:
        if given := [option for field, option in OF_TABLES.items() if field in self.model_fields_set]:
            return f"{given[0]} goes with --from, the tables of predictions to choose from."
        if self.most is not None and self.most < 1:
            return f"--most is 1 or more trials to choose among, not {self.most}."
        if self.split in LEARNT:
            return (
                f"--split {self.split}: members have learnt those images or were chosen on them, so that their scores "
                "there are no forecast: take test or holdout. The cross-fitted scores of the validation images, by "
                "weights that their subjects did not choose, are in every ensemble's predictions/val.parquet."
            )
        if self.split is not None and self.split not in (*SCORED, "holdout"):
            return f"--split is one of {', '.join(SCORED)} and holdout, not '{self.split}'."
        return ""


class PredictRequest(Config):
    """What is asked of `predict`: the options of the command, with their defaults."""

    ensemble: Annotated[str, cli.option("an ensemble: its directory or ensemble.json, path or URI")]
    data: Annotated[str, cli.option("the new images: a directory or URI, with or without a table")]
    ask: Annotated[str | None, cli.option("findings to ask for by name, separated by commas: written to asked.csv")] = (
        None
    )
    ask_descriptions: Annotated[
        str | None, cli.option("with --ask: a YAML file or folder of your own descriptions", "--ask-descriptions")
    ] = None
    maps: Annotated[str | None, cli.option("with --ask: a directory for attention maps (head film)")] = None
    format: Annotated[str | None, cli.option("the data's format; detected by default")] = None
    split: Annotated[str | None, cli.option("score only this split of the data")] = None
    out: Annotated[str, cli.option("where to write predictions.parquet and submission.csv")] = "predictions"
    storage: Annotated[str, cli.option("where to keep the shards: a directory or URI")] = DEFAULT_STORAGE
    max_bad: Annotated[float, cli.option("the share of images that may be undecodable")] = 0.05
    checksum: Annotated[bool, cli.option("detect changed images by their contents, not by time", "--checksum")] = False
    zip: Annotated[bool, cli.option("also write submission.zip", "--zip")] = False
    calibrate: Annotated[bool, cli.option("apply the calibration that the ensemble keeps", "--calibrate")] = False
    address: Annotated[str | None, cli.option("a Ray cluster to join; auto on its head node")] = None

    @model_validator(mode="after")
    def _check(self) -> PredictRequest:
        if self.ask_descriptions is not None and self.ask is None:
            raise UsageError("--ask-descriptions goes with --ask, the findings that it describes.")
        if self.maps is not None and self.ask is None:
            raise UsageError("--maps goes with --ask, the findings of which pictures are drawn.")
        return self
