"""All that can be asked of a sweep, checked in one place: what `python -m cxrlt_ray.sweep`'s options fill.

from cxrlt_ray import sweep
run = sweep.run(sweep.SweepRequest(task="task1", data="/data/mimic", trials=60, storage="runs"))
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, get_args

from pydantic import model_validator

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.data.asking import MINED, SCRUBBED, TRACKS, names_in
from cxrlt_ray.data.given_labels import BLANK, MODES
from cxrlt_ray.data.shards import MAX_BAD, QUALITY, parse_quality, parse_sizes
from cxrlt_ray.data.tasks import TASK_HELP, ZERO_SHOT, load_task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.records import Promote
from cxrlt_ray.runs.store import DEFAULT_STORAGE
from cxrlt_ray.search.rates import GPUS
from cxrlt_ray.tracking import TRACKERS, parse_trackers

LIKENESS = ("frontal", "any")  # of validation images: PA or AP; with at least one finding
FINDING_FOLDS = 3
ENGINES = ("auto", "threads", "ray")
PROMOTE: tuple[str, ...] = get_args(Promote)


class SweepRequest(Config):
    """What is asked of a sweep: the options of the command, with their defaults.

    Raises UsageError for a value that is wrong whatever the data.
    """

    task: Annotated[str, cli.argument(TASK_HELP)]
    data: Annotated[str | None, cli.option("the data's directory or URI; default: a phantom cohort is drawn")] = None
    format: Annotated[str | None, cli.option("the data's format; found by looking")] = None
    space: Annotated[str | None, cli.option("search space: a name or a path; laptop without a GPU")] = None
    trials: Annotated[int | None, cli.option("how many trials; else the space's")] = None
    epochs: Annotated[int | None, cli.option("epochs a trial; else the space's")] = None
    time_budget: Annotated[str | None, cli.option("fit the sweep to this time and end it by then: 90s, 30m, 2h")] = None
    max_concurrent: Annotated[int | None, cli.option("trials at a time; as many as the GPUs hold")] = None
    gpus_per_trial: Annotated[float | None, cli.option("GPUs a worker; fractions share one")] = None
    cpus_per_trial: Annotated[float | None, cli.option("CPUs a worker")] = None
    workers_per_trial: Annotated[int, cli.option("Train workers a trial")] = 1
    min_workers: Annotated[int | None, cli.option("fewest when machines are lost; all")] = None
    folds: Annotated[int | None, cli.option("K: each trial trains K models, out-of-fold; 0 without it")] = None
    ask: Annotated[str | None, cli.option("A,B: findings to predict from text, without their labels")] = None
    finding_folds: Annotated[int | None, cli.option("K folds of seen findings that choose what is asked for; 3")] = None
    track: Annotated[str | None, cli.option("what training sees of them: scrubbed, reports, mined, outside")] = None
    scrub: Annotated[str | None, cli.option("track scrubbed: FILE with other wordings of findings to scrub")] = None
    descriptions: Annotated[str | None, cli.option("your own descriptions of findings: a YAML file or folder")] = None
    choose_by: Annotated[str, cli.option("folds of seen findings, or mined: labels by validation reports")] = "folds"
    cohort: Annotated[list[str] | None, cli.option("NAME=DIR: another cohort to train on, as stages name it")] = None
    holdout: Annotated[float, cli.option("share of validation subjects held out for the final score")] = 0.0
    views: Annotated[str, cli.option("views to train on: all or frontal")] = "all"
    val_like: Annotated[str | None, cli.option("validate on images like the test's: frontal, any (a finding)")] = None
    uncertain: Annotated[str, cli.option("CheXpert's -1: null, zero or one")] = "null"
    labels: Annotated[str | None, cli.option("a table of labels by study")] = None
    labels_mode: Annotated[str, cli.option("replace or join")] = "replace"
    labels_blank: Annotated[str, cli.option("an empty label: zero or null")] = "zero"
    max_bad: Annotated[float, cli.option("share of undecodable images allowed")] = MAX_BAD
    sizes: Annotated[str | None, cli.option("edges of the prepared images; default: those of the space")] = None
    quality: Annotated[str, cli.option("of the prepared images: 1 to 100 for JPEG, or lossless")] = str(QUALITY)
    checksum: Annotated[bool, cli.option("compare images by their contents", "--checksum")] = False
    soft_targets: Annotated[str | None, cli.option("a table of predictions that objective distill learns")] = None
    reports: Annotated[str | None, cli.option("the cohort's reports, for objectives that read: tree or table")] = None
    reworded: Annotated[str | None, cli.option("reports in other words, such as translated and back: a table")] = None
    boxes: Annotated[str | None, cli.option("where findings are, for grounding")] = None
    ingest: Annotated[str, cli.option("streaming: threads, ray, or auto: ray on a cluster of several nodes")] = "auto"
    cache_gb: Annotated[float | None, cli.option("decoded images kept in a machine's memory; a quarter of it")] = None
    features_gb: Annotated[float | None, cli.option("frozen backbones' features on disk; a quarter of the free")] = None
    warm_from: Annotated[list[str] | None, cli.option("RUN: start with the best settings of an earlier run")] = None
    objectives: Annotated[str, cli.option("map, or map,cost: also few GFLOPs an image")] = "map"
    promote: Annotated[str | None, cli.option("ASHA's choice: map, a trial's own, or ensemble: what it adds")] = None
    seed: Annotated[int, cli.option("of search, splits and trials")] = 0
    name: Annotated[str | None, cli.option("the run's name; else task and time")] = None
    storage: Annotated[str, cli.option("where runs go: a directory or URI")] = DEFAULT_STORAGE
    address: Annotated[str | None, cli.option("join a Ray cluster: auto")] = None
    resume: Annotated[bool, cli.option("continue run --name, or the latest", "--resume")] = False
    retries: Annotated[int, cli.option("how often a trial is restarted after a fault")] = 2
    hung_after: Annotated[str, cli.option("end a trial that has done no batch for so long: 90s, 10m")] = "10m"
    keep_checkpoints: Annotated[int | None, cli.option("of the N best trials only; else all")] = None
    search_db: Annotated[str | None, cli.option("URL of the search's database; default: SQLite in the run")] = None
    log_with: Annotated[str | None, cli.option("curves to tensorboard, wandb or both; of --resume: the run's")] = None
    dry_run: Annotated[bool, cli.option("build all models without memory, plan, start nothing", "--dry-run")] = False
    smoke: Annotated[bool, cli.option("the space in small: tiny models, few images, minutes", "--smoke")] = False
    plan: Annotated[bool, cli.option("say what it will cost (time, GPU-hours, disk), start nothing", "--plan")] = False
    probe: Annotated[bool, cli.option("measure the plan's rates here, about a minute", "--probe")] = False
    images: Annotated[int | None, cli.option("plan for so many images; of --smoke: draw so many")] = None
    gpu: Annotated[str | None, cli.option(f"plan for this GPU: {', '.join(GPUS)}; the one here, or H100")] = None
    price: Annotated[float, cli.option("of a GPU-hour, in any currency, for the plan")] = 3.0

    @model_validator(mode="after")
    def _check(self) -> SweepRequest:
        for problem in (*self._problems_of_data(), *self._problems_of_search(), *self._problems_of_plan()):
            raise UsageError(problem)
        _ = self.seconds, self.hung_seconds, self.database, self.cohorts, self.jpeg_quality  # raise what is wrong
        _ = self.trackers
        return self

    def _problems_of_data(self) -> list[str]:
        if self.sizes is not None:
            parse_sizes(self.sizes)
        problems = []
        if self.views not in ("all", "frontal"):
            problems.append(f"--views is all or frontal, not '{self.views}'.")
        if self.val_like is not None and not set(self.likeness) <= set(LIKENESS):
            problems.append(f"--val-like is {', '.join(LIKENESS)} or both, joined by a comma; not '{self.val_like}'.")
        if self.labels_mode not in MODES:
            problems.append(f"--labels-mode is {' or '.join(MODES)}, not '{self.labels_mode}'.")
        if self.labels_blank not in BLANK:
            problems.append(f"--labels-blank is {' or '.join(BLANK)}, not '{self.labels_blank}'.")
        if self.labels is None and not self.resume and {"labels_mode", "labels_blank"} & self.model_fields_set:
            problems.append("--labels-mode and --labels-blank say how --labels are used: give --labels FILE too.")
        if not 0 <= self.max_bad <= 1:
            problems.append(f"--max-bad is a share from 0 to 1, not {self.max_bad:g}.")
        if not 0 <= self.holdout < 1:
            problems.append(f"--holdout is a share from 0 to below 1, not {self.holdout:g}.")
        if self.folds is not None and (self.folds < 0 or self.folds == 1):
            problems.append(f"--folds needs at least 2 folds, not {self.folds}.")
        return [*problems, *self._problems_of_asking()]

    def _problems_of_asking(self) -> list[str]:
        problems = []
        if self.ask is not None and self.task in ZERO_SHOT:
            problems.append(f"{self.task} asks for its own findings: give --ask with the task whose labels train.")
        if not self.asked and self.finding_folds is not None and not self.resume:
            problems.append("--finding-folds is for task3, 2026-task2 and --ask, which ask for findings by text.")
        if self.finding_folds is not None and self.choose_by == MINED:
            problems.append(f"--finding-folds choose where labels do not: leave it out with --choose-by {MINED}.")
        if self.finding_folds is not None and self.finding_folds < 1:
            problems.append(f"--finding-folds is 1 or more, not {self.finding_folds}.")
        if self.track is not None and set(self.track.split(",")) <= set(TRACKERS):
            problems.append(f"--track is of findings asked for by text; curves go by --log-with {self.track}.")
        elif self.track is not None and (self.track not in TRACKS or not self.asked):
            problems.append(
                f"--track is {', '.join(TRACKS)}, of findings that are asked for by text; not '{self.track}'."
            )
        if self.scrub is not None and (self.track not in (None, SCRUBBED) or not self.asked):
            problems.append(f"--scrub takes findings' wordings out of the reports of --track {SCRUBBED}: leave it out.")
        if self.choose_by not in ("folds", MINED) or (self.choose_by == MINED and self.track != MINED):
            problems.append(f"--choose-by is folds, or {MINED} on --track {MINED}; not '{self.choose_by}'.")
        if self.asked and self.folds:
            problems.append("--folds are of images: a sweep that asks for findings by text has --finding-folds.")
        if self.asked and self.holdout:
            problems.append(
                "--holdout keeps labels to score by, and a sweep reads none of what it asks for: leave it out."
            )
        return problems

    def _problems_of_search(self) -> list[str]:
        problems = []
        if self.ingest not in ENGINES:
            problems.append(f"--ingest is auto, {' or '.join(ENGINES[1:])}, not '{self.ingest}'.")
        if self.objectives not in ("map", "map,cost"):
            problems.append(f"--objectives is map or map,cost, not '{self.objectives}'.")
        if self.promote is not None and self.promote not in PROMOTE:
            problems.append(f"--promote is {' or '.join(PROMOTE)}, not '{self.promote}'.")
        if self.cache_gb is not None and not 0 <= self.cache_gb < math.inf:
            problems.append(f"--cache-gb is 0 (none) or more, not {self.cache_gb:g}.")
        if self.features_gb is not None and not 0 <= self.features_gb < math.inf:
            problems.append(f"--features-gb is 0 (none) or more, not {self.features_gb:g}.")
        if self.trials is not None and self.trials < 1:
            problems.append(f"--trials must be at least 1, not {self.trials}.")
        if self.epochs is not None and self.epochs < 1:
            problems.append(f"--epochs must be at least 1, not {self.epochs}.")
        if self.retries < 0:
            problems.append(f"--retries is 0 or more, not {self.retries}.")
        if self.keep_checkpoints is not None and self.keep_checkpoints < 1:
            problems.append(
                f"--keep-checkpoints must be at least 1, not {self.keep_checkpoints}: the ensemble needs them."
            )
        return problems

    def _problems_of_plan(self) -> list[str]:
        problems, planning = [], self.plan or self.dry_run
        if self.images is not None and (self.images < 10 or not (planning or self.smoke)):
            problems.append(f"--images is for --plan, --dry-run and --smoke, and at least 10, not {self.images}.")
        if self.images is not None and self.resume and not planning:
            problems.append("--images is not for --resume: the run has its images.")
        if self.gpu is not None and not planning:
            problems.append("--gpu is for --plan: a sweep trains on what there is.")
        if self.gpu is not None and self.gpu not in GPUS:
            problems.append(f"--gpu is one of {', '.join(GPUS)}, not '{self.gpu}'.")
        if not 0 <= self.price < math.inf:
            problems.append(f"--price is 0 or more, not {self.price:g}.")
        if "price" in self.model_fields_set and not planning:
            problems.append("--price is for --plan: a sweep does not ask what it costs.")
        return problems

    @property
    def likeness(self) -> tuple[str, ...]:
        """What validation images must be: of LIKENESS; () for no condition."""
        return () if self.val_like is None else tuple(part.strip() for part in self.val_like.split(","))

    @cached_property
    def asked(self) -> tuple[str, ...]:
        """The findings that are asked for by text, as they are typed; () for none."""
        if self.task in ZERO_SHOT:
            return load_task(self.task).findings
        return () if self.ask is None else names_in(self.ask)

    @property
    def models(self) -> int:
        """How many models a trial trains on folds of findings; 0 where none is asked for by text."""
        if self.choose_by == MINED:
            return 1
        return (self.finding_folds or FINDING_FOLDS) if self.asked else 0

    @property
    def starts_nothing(self) -> bool:
        """Whether only a plan is asked for."""
        return self.plan or self.dry_run

    @cached_property
    def seconds(self) -> float | None:
        """The time budget in seconds."""
        return None if self.time_budget is None else parse_seconds(self.time_budget, "--time-budget")

    @cached_property
    def trackers(self) -> tuple[str, ...]:
        """The names of those of --log-with."""
        return () if self.log_with is None else parse_trackers(self.log_with)

    @cached_property
    def hung_seconds(self) -> float:
        """Seconds without a batch after which a trial is ended."""
        return parse_seconds(self.hung_after, "--hung-after")

    @cached_property
    def database(self) -> str | None:
        """The URL of Optuna's database as SQLAlchemy takes it."""
        if not self.search_db:
            return None
        from cxrlt_ray.search.optuna_study import check_url

        return check_url(self.search_db)

    @cached_property
    def cohorts(self) -> dict[str, str]:
        """Other cohorts: mapping -> directory."""
        from cxrlt_ray.data.joining import parse_cohorts

        return parse_cohorts(self.cohort) if self.cohort else {}

    @cached_property
    def jpeg_quality(self) -> int:
        """Of the prepared images; 0 for lossless ones."""
        return parse_quality(self.quality)


def parse_seconds(text: str, option: str) -> float:
    """'90s', '30m', '2h', '1d' in seconds. Raises UsageError for another form, and for no time or no end of it."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    try:
        seconds = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise UsageError(f"{option} is a number and s, m, h or d, such as 2h; not '{text}'.")
    if seconds <= 0:
        raise UsageError(f"{option} is longer than nothing, not '{text}'.")
    return seconds
