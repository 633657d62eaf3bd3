"""All that can be asked of `evaluate`, checked in one place: what the command's options fill.

from cxrlt_ray import evaluate
evaluate.run(evaluate.EvaluateRequest(submission="submission.csv", data="/data/mimic", task="task1"))
"""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.data.groups import OWN
from cxrlt_ray.data.score_scale import SCALES
from cxrlt_ray.data.tasks import TASK_HELP
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.groups import MIN_GROUP

FORMATS = ("csv", "json")


class EvaluateRequest(Config):
    """What is asked of `evaluate`: the options of the command, with their defaults.

    Raises UsageError for a wrong one.
    """

    submission: Annotated[str, cli.argument("a submission.csv or .zip, or the directory of an ensemble: path or URI")]
    data: Annotated[str | None, cli.option("the cohort that was scored: a directory or URI; not with an ensemble")] = (
        None
    )
    task: Annotated[str, cli.option(TASK_HELP + "; an ensemble knows")] = "task1"
    format: Annotated[str | None, cli.option("the data's format; detected by default")] = None
    split: Annotated[str | None, cli.option("the split that was scored; default: the task's own")] = None
    uncertain: Annotated[str, cli.option("CheXpert's -1: null, zero or one")] = "null"
    scores: Annotated[str | None, cli.option("what the scores are: probability, percent or logit")] = None
    rounds: Annotated[int, cli.option("bootstrap rounds of the intervals")] = 1000
    seed: Annotated[int, cli.option("the sweep's seed, which drew the splits of data that has none")] = 0
    out: Annotated[str | None, cli.option("write the scores to this .csv (per finding) or .json (all)")] = None
    by: Annotated[str | None, cli.option(f"compare groups, by {', '.join(OWN)} or columns of --groups")] = None
    groups: Annotated[
        str | None, cli.option("with --by: a table of image_id, study_id or subject_id, and columns of groups")
    ] = None
    min_group: Annotated[int, cli.option("with --by: fewest subjects of a group that is shown")] = MIN_GROUP
    thresholds: Annotated[
        str | None, cli.option("for FNR of groups and sites: a table, or an aim of the ensemble (f1); best F1 without")
    ] = None
    external: Annotated[
        list[str] | None, cli.option("NAME=DIR: another site, scored by the ensemble, whose findings cohorts/ maps")
    ] = None
    storage: Annotated[str | None, cli.option("with --external: where to keep shards; default: beside the run")] = None
    max_bad: Annotated[float, cli.option("with --external: the share of images that may be undecodable")] = 0.05
    address: Annotated[str | None, cli.option("with --external: a Ray cluster to join; auto on its head node")] = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of `by`."""
        return tuple(dict.fromkeys(name.strip() for name in (self.by or "").split(",") if name.strip()))

    @property
    def sites(self) -> dict[str, str]:
        """Other sites: mapping -> directory. Raises UsageError for a wrong one."""
        from cxrlt_ray.data.joining import parse_cohorts

        return parse_cohorts(self.external, "--external") if self.external else {}

    @model_validator(mode="after")
    def _check(self) -> EvaluateRequest:
        if self.out and self.out.rpartition(".")[2] not in FORMATS:
            raise UsageError(f"--out {self.out} must end in {' or '.join(f'.{kind}' for kind in FORMATS)}.")
        if self.scores is not None and self.scores not in SCALES:
            raise UsageError(f"--scores takes {', '.join(SCALES)}, not '{self.scores}'.")
        if self.rounds < 1:
            raise UsageError(f"--rounds must be at least 1, not {self.rounds}.")
        if self.by is not None and not self.columns:
            raise UsageError(f"--by names no column: give some of {', '.join(OWN)}, separated by commas.")
        if self.min_group < 1:
            raise UsageError(f"--min-group must be at least 1, not {self.min_group}.")
        if self.by is None and (given := {"groups", "min_group"} & self.model_fields_set):
            raise UsageError(f"--{min(given).replace('_', '-')} goes with --by, the columns to compare groups by.")
        if self.by is None and self.external is None and self.thresholds is not None:
            raise UsageError("--thresholds goes with --by or --external.")
        _ = self.sites  # raises what is wrong
        return self
