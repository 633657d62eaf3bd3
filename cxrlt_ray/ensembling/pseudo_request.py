"""All that can be asked of `pseudo`, checked in one place: what the command's options fill."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, get_args

from pydantic import model_validator

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.data.teacher import Values, Weights
from cxrlt_ray.errors import UsageError

JUDGING = ("val", "validation", "holdout", "development")


class PseudoRequest(Config):
    """What is asked of `pseudo`: the options of the command, with their defaults.

    Raises UsageError for a value that is wrong whatever the ensemble.
    """

    ensemble: Annotated[str, cli.argument("the teacher: RUN/ensembles/NAME, or its ensemble.json")]
    cohort: Annotated[
        list[str] | None, cli.option("NAME=DIR: cohort whose missing labels to fill; default: the run's")
    ] = None
    weights: Annotated[str, cli.option("mean of the members, or chosen: by validation (see docs/pseudo.md)")] = "mean"
    values: Annotated[str, cli.option("soft (calibrated), hard (thresholds by prevalence) or raw")] = "soft"
    keep: Annotated[float, cli.option("of --values hard: the share of cells that get a label")] = 0.8
    on: Annotated[str | None, cli.option("test: pseudo-label test images too; flagged in all that follows")] = None
    out: Annotated[str, cli.option("where to write KEY.parquet and KEY.json")] = "pseudo"
    max_bad: Annotated[float, cli.option("the share of images that may be undecodable")] = 0.05
    rounds: Annotated[int, cli.option("bootstrap rounds of the intervals")] = 1000
    seed: Annotated[int, cli.option("seed of bootstrap, parts of subjects and --smoke")] = 0
    address: Annotated[str | None, cli.option("a Ray cluster to join; auto on its head node")] = None
    smoke: Annotated[bool, cli.option("few images; a phantom if no cohort is given", "--smoke")] = False
    plan: Annotated[bool, cli.option("print what would be scored and its cost, start nothing", "--plan")] = False

    @model_validator(mode="after")
    def _check(self) -> PseudoRequest:
        if self.on in JUDGING:
            raise UsageError(
                f"--on {self.on}: these images judge the student, and are never pseudo-labelled for its training."
            )
        for option, value, allowed in (
            ("--on", self.on or "test", ("test",)),
            ("--weights", self.weights, get_args(Weights)),
            ("--values", self.values, get_args(Values)),
        ):
            if value not in allowed:
                raise UsageError(f"{option} is {' or '.join(allowed)}, not '{value}'.")
        if not 0 < self.keep <= 1:
            raise UsageError(f"--keep is a share above 0 and up to 1, not {self.keep:g}.")
        if "keep" in self.model_fields_set and self.values != "hard":
            raise UsageError(f"--keep is for --values hard: {self.values} values leave no cell out.")
        if self.rounds < 1:
            raise UsageError(f"--rounds must be at least 1, not {self.rounds}.")
        _ = self.cohorts  # raises what is wrong
        return self

    @cached_property
    def cohorts(self) -> dict[str, str]:
        """Other cohorts: mapping -> directory."""
        from cxrlt_ray.data.joining import parse_cohorts

        return parse_cohorts(self.cohort) if self.cohort else {}
