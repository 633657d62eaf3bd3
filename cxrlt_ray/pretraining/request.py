"""All that can be asked of a pretraining, checked in one place: the options of `python -m cxrlt_ray.pretrain`.

from cxrlt_ray import pretrain
pretrain.run(pretrain.PretrainRequest(method="simclr", cohort=["nih=/data/nih"], out="pretrained/nih"))
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.data.shards import MAX_BAD, QUALITY, parse_quality
from cxrlt_ray.errors import UsageError
from cxrlt_ray.pretraining.cohorts import SPLITS, TRAIN, parse_cohorts
from cxrlt_ray.runs.store import DEFAULT_STORAGE
from cxrlt_ray.runs.trial_config import Scalar
from cxrlt_ray.search.rates import GPUS
from cxrlt_ray.search.request import ENGINES, parse_seconds

SMOKE_IMAGES = 400  # of the phantom that is drawn for --smoke
# what may differ in a process that goes on
OF_PROCESS = {"resume", "out", "workers", "threads", "address", "time_budget", "plan", "gpu", "ingest"}
OF_MODEL = ("backbone", "checkpoint", "pretrained", "resolution", "epochs", "steps", "batch_size", "lr")


class PretrainRequest(Config):
    """What is asked of a pretraining: the options of the command. Raises UsageError for one that is wrong by itself."""

    method: Annotated[str | None, cli.option("dinov2, mae, simclr, barlow or moco; default: the file's")] = None
    cohort: Annotated[list[str] | None, cli.option("NAME=DIR: images to learn from, labelled or not; repeatable")] = (
        None
    )
    config: Annotated[str | None, cli.option("a file of pretraining/, by name or path; default: the method's")] = None
    assignments: Annotated[list[str] | None, cli.option("KEY=VALUE of that file, such as lr=1e-4", "--set")] = None
    backbone: Annotated[str | None, cli.option("a timm name; default: the file's")] = None
    checkpoint: Annotated[str | None, cli.option("begin with the weights in this file")] = None
    pretrained: Annotated[bool, cli.option("begin with the backbone's public weights", "--pretrained")] = False
    resolution: Annotated[int | None, cli.option("edge of the images in pixels; default: the file's")] = None
    epochs: Annotated[int | None, cli.option("number of epochs; default: the file's")] = None
    steps: Annotated[int | None, cli.option("optimizer steps, instead of epochs")] = None
    batch_size: Annotated[int | None, cli.option("images per worker and step; default: the file's")] = None
    lr: Annotated[float | None, cli.option("the highest learning rate; default: the file's")] = None
    splits: Annotated[str, cli.option("of each cohort: train, train+val or all; anything but train is flagged")] = TRAIN
    time_budget: Annotated[str | None, cli.option("fit the steps to this time and end by then: 90s, 30m, 2h")] = None
    workers: Annotated[int, cli.option("Ray Train workers, a GPU each where there are any")] = 1
    threads: Annotated[int | None, cli.option("threads of a worker on a CPU; default: all, or its share")] = None
    out: Annotated[str | None, cli.option("directory for backbone and record; default: in --storage")] = None
    resume: Annotated[bool, cli.option("continue the pretraining in --out", "--resume")] = False
    smoke: Annotated[bool, cli.option("on a small scale, about a minute; on a phantom without --cohort", "--smoke")] = (
        False
    )
    plan: Annotated[bool, cli.option("print the expected cost, start nothing", "--plan")] = False
    gpu: Annotated[str | None, cli.option(f"plan for this GPU: {', '.join(GPUS)}")] = None
    quality: Annotated[str, cli.option("quality of prepared images: 1 to 100 for JPEG, or lossless")] = str(QUALITY)
    max_bad: Annotated[float, cli.option("share of undecodable images allowed")] = MAX_BAD
    ingest: Annotated[str, cli.option("streaming: threads, ray, or auto: ray on a cluster of several nodes")] = "auto"
    seed: Annotated[int, cli.option("seed of weights, order and splits; use the same in a sweep")] = 0
    storage: Annotated[str, cli.option("where prepared images go: a directory or URI, as a sweep's")] = DEFAULT_STORAGE
    address: Annotated[str | None, cli.option("a Ray cluster to join; auto on its head node")] = None

    @model_validator(mode="after")
    def _check(self) -> PretrainRequest:
        for problem in self._problems():
            raise UsageError(problem)
        _ = self.seconds, self.jpeg_quality  # raise what is wrong
        return self

    def _problems(self) -> list[str]:
        problems = []
        if self.resume and self.out is None:
            problems.append("--resume goes on with what is in --out DIR: say which.")
        if self.splits not in SPLITS:
            problems.append(f"--splits is {', '.join(SPLITS)}, not '{self.splits}'.")
        if self.epochs is not None and self.steps is not None:
            problems.append("--epochs and --steps both say how long: give one of them.")
        for option in ("epochs", "steps", "workers", "threads"):
            if (value := getattr(self, option)) is not None and value < 1:
                problems.append(f"--{option} is 1 or more, not {value}.")
        if self.pretrained and self.checkpoint:
            problems.append("--pretrained and --checkpoint both say what to begin with: give one of them.")
        if self.ingest not in ENGINES:
            problems.append(f"--ingest is {', '.join(ENGINES)}, not '{self.ingest}'.")
        if self.gpu is not None and (self.gpu not in GPUS or not self.plan):
            problems.append(f"--gpu is one of {', '.join(GPUS)}, for --plan; not '{self.gpu}'.")
        if not (self.cohort or self.resume or self.smoke):
            problems.append("--cohort NAME=DIR says which images are learnt from; several may be given.")
        return problems

    @cached_property
    def cohorts(self) -> dict[str, str]:
        """Name -> directory. Raises UsageError for another form and a directory that is not there."""
        return parse_cohorts(self.cohort or [])

    @property
    def of_model(self) -> dict[str, Scalar]:
        """The options that stand for fields of the file, by the fields' names."""
        values = {name: getattr(self, name) for name in OF_MODEL}
        return values | {"pretrained": self.pretrained or None}

    @cached_property
    def seconds(self) -> float | None:
        """The time budget in seconds."""
        return None if self.time_budget is None else parse_seconds(self.time_budget, "--time-budget")

    @cached_property
    def jpeg_quality(self) -> int:
        """Of the prepared images; 0 for lossless ones."""
        return parse_quality(self.quality)

    @property
    def folder(self) -> str:
        """Where backbone and record go."""
        return self.out or f"{self.storage}/pretrained-{self.method or self.config}-{time.strftime('%Y%m%d-%H%M%S')}"

    def gone_on(self, kept: dict[str, bool | int | float | str | list[str] | None]) -> PretrainRequest:
        """The request by which a pretraining began, `kept`, with what this one may change.

        Raises UsageError for an option that differs.
        """
        given = self.model_fields_set - OF_PROCESS
        if differing := [name for name in sorted(given) if getattr(self, name) != kept.get(name)]:
            option = "--set" if differing[0] == "assignments" else f"--{differing[0].replace('_', '-')}"
            raise UsageError(
                f"{option} differs from what {self.out} was begun with: leave it out, or give another --out."
            )
        own = {name: getattr(self, name) for name in self.model_fields_set & OF_PROCESS}
        return PretrainRequest.model_validate({**kept, **own})
