"""All that can be asked of `evaluate`, checked in one place: what the command's options fill.

from cxrlt_ray import evaluate
evaluate.run(evaluate.EvaluateRequest(submission="submission.csv", data="/data/mimic", task="task1"))
"""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.data.score_scale import SCALES
from cxrlt_ray.data.tasks import TASK_HELP
from cxrlt_ray.errors import UsageError

FORMATS = ("csv", "json")


class EvaluateRequest(Config):
    """What is asked of `evaluate`: the options of the command, with their defaults.

    Raises UsageError for a wrong one.
    """

    submission: Annotated[str, cli.argument("a submission.csv or .zip: path or URI")]
    data: Annotated[str, cli.option("the cohort that was scored: a directory or URI")]
    task: Annotated[str, cli.option(TASK_HELP)] = "task1"
    format: Annotated[str | None, cli.option("the data's format; found by looking without it")] = None
    split: Annotated[str | None, cli.option("the split that was scored; the task's own without it")] = None
    uncertain: Annotated[str, cli.option("CheXpert's -1: null, zero or one")] = "null"
    scores: Annotated[str | None, cli.option("what the scores are: probability, percent or logit")] = None
    rounds: Annotated[int, cli.option("bootstrap rounds of the intervals")] = 1000
    seed: Annotated[int, cli.option("the sweep's seed, which drew the splits of data that has none")] = 0
    out: Annotated[str | None, cli.option("leave the scores in this .csv (per finding) or .json (all)")] = None

    @model_validator(mode="after")
    def _check(self) -> EvaluateRequest:
        if self.out and self.out.rpartition(".")[2] not in FORMATS:
            raise UsageError(f"--out {self.out} must end in {' or '.join(f'.{kind}' for kind in FORMATS)}.")
        if self.scores is not None and self.scores not in SCALES:
            raise UsageError(f"--scores takes {', '.join(SCALES)}, not '{self.scores}'.")
        if self.rounds < 1:
            raise UsageError(f"--rounds must be at least 1, not {self.rounds}.")
        return self
