"""All that can be asked of `generate`, checked in one place: what the command's options fill."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.errors import UsageError
from cxrlt_ray.generation.conditions import COMPANIES, REAL
from cxrlt_ray.generation.config import SOLVERS
from cxrlt_ray.generation.training_rows import VIEWS

TRAIN, SAMPLE, FILTER = "train", "sample", "filter"
ACTIONS = (TRAIN, SAMPLE, FILTER)
SMOKE, TINY = "smoke", "tiny"
SMOKE_EACH, SMOKE_SOLVER_STEPS, SMOKE_STEPS, SMOKE_IMAGES = 4, 10, 20, 400
# options that an action has alone
OWN = {
    TRAIN: (
        "config", "task", "format", "views", "split_seed", "steps", "time_budget", "autoencoder", "checkpoint", "text",
    ),
    SAMPLE: ("findings", "each", "company", "guidance", "solver", "solver_steps"),
    FILTER: ("teacher", "agreement", "seen_teacher", "false_alarms", "features", "quota"),
}  # fmt: skip
SHARED = {"seed": (TRAIN, SAMPLE), "smoke": (TRAIN, SAMPLE), "storage": (TRAIN, FILTER)}  # those that two actions have


class GenerateRequest(Config):
    """What is asked of `generate`: the command's options, with their defaults. Raises UsageError for a wrong one."""

    action: Annotated[str, cli.argument("train: a generator; sample: draw images with it; filter: keep the good ones")]
    source: Annotated[
        str | None, cli.argument("train: the data, default a phantom; sample: the generator; filter: drawn images")
    ] = None
    out: Annotated[str | None, cli.option("the new folder for the generator or the images")] = None
    storage: Annotated[str, cli.option("train, filter: where prepared images are kept, and the teacher's run")] = "runs"
    seed: Annotated[int, cli.option("train, sample: seed of all random draws")] = 0
    smoke: Annotated[bool, cli.option("train, sample: on the smallest scale, as a test", "--smoke")] = False
    address: Annotated[str | None, cli.option("a Ray cluster to join; auto on its head node")] = None
    # train
    config: Annotated[str | None, cli.option("train: tiny, latent, stable_diffusion, or a YAML file's path")] = None
    task: Annotated[str, cli.option("train: the task whose findings are learned, as for sweep")] = "task1"
    format: Annotated[str | None, cli.option("train: the data's format; detected by default")] = None
    views: Annotated[str, cli.option("train: frontal (PA and AP) or all")] = "frontal"
    split_seed: Annotated[int, cli.option("train: seed of splits that the data lacks: the sweep's --seed")] = 0
    steps: Annotated[int | None, cli.option("train: steps of the optimizer, instead of the configuration's")] = None
    time_budget: Annotated[
        str | None, cli.option("train: stop after this time; the same command continues: 90s, 30m")
    ] = None
    autoencoder: Annotated[str | None, cli.option("train: a folder of an AutoencoderKL, to work in its latents")] = None
    checkpoint: Annotated[str | None, cli.option("train: a Stable Diffusion folder, to fine-tune on text")] = None
    text: Annotated[str | None, cli.option("train: another text encoder than the checkpoint's own")] = None
    # sample
    findings: Annotated[list[str] | None, cli.option("sample: sets to draw, A or A+B; default: the tail findings")] = (
        None
    )
    each: Annotated[int, cli.option("sample: images per set")] = 100
    company: Annotated[str, cli.option("sample: a set alone, or with the findings of a real image (real)")] = REAL
    guidance: Annotated[float, cli.option("sample: scale of classifier-free guidance; 1: none")] = 2.0
    solver: Annotated[str, cli.option("sample: ddim or dpm")] = "ddim"
    solver_steps: Annotated[int, cli.option("sample: steps of the solver")] = 50
    # filter
    teacher: Annotated[str | None, cli.option("filter: RUN or RUN/TRIAL with folds, or an ensemble's folder")] = None
    agreement: Annotated[
        float, cli.option("filter: share of real images without a finding that a score must exceed")
    ] = 0.5
    seen_teacher: Annotated[
        bool, cli.option("filter: accept a teacher that has seen the source subjects; recorded", "--seen-teacher")
    ] = False
    false_alarms: Annotated[float, cli.option("filter: share of real images that would count as near-copies")] = 0.01
    features: Annotated[str, cli.option("filter: the frozen network that detects near-copies")] = (
        "tf_efficientnet_lite0"
    )
    quota: Annotated[int | None, cli.option("filter: most images kept per set")] = None

    @model_validator(mode="after")
    def _check(self) -> GenerateRequest:
        if self.action not in ACTIONS:
            raise UsageError(f"generate {self.action}: the action is {', '.join(ACTIONS)}.")
        for action, names in OWN.items():
            foreign = [name for name in names if name in self.model_fields_set]
            if action != self.action and foreign:
                option = foreign[0].replace("_", "-")
                raise UsageError(f"--{option} is of generate {action}, not of generate {self.action}: leave it out.")
        for name, actions in SHARED.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.action not in actions:
                raise UsageError(
                    f"--{name} is of generate {' and '.join(actions)}, not of generate {self.action}: leave it out."
                )
        if self.out is None:
            raise UsageError("--out FOLDER says where what is made goes.")
        if self.source is None and self.action != TRAIN:
            what = "the generator's folder" if self.action == SAMPLE else "the folder of drawn images"
            raise UsageError(f"generate {self.action} needs {what}.")
        for option, value, fits, allowed in (
            ("--each", self.each, self.each >= 1, "1 or more"),
            ("--steps", self.steps, self.steps is None or self.steps >= 1, "1 or more"),
            ("--solver-steps", self.solver_steps, self.solver_steps >= 1, "1 or more"),
            ("--guidance", self.guidance, self.guidance >= 0, "0 or more"),
            ("--quota", self.quota, self.quota is None or self.quota >= 1, "1 or more"),
            ("--agreement", self.agreement, 0 <= self.agreement < 1, "at least 0 and below 1"),
            ("--false-alarms", self.false_alarms, 0 < self.false_alarms < 1, "between 0 and 1"),
            ("--company", self.company, self.company in COMPANIES, " or ".join(COMPANIES)),
            ("--views", self.views, self.views in VIEWS, " or ".join(VIEWS)),
            ("--solver", self.solver, self.solver in SOLVERS, " or ".join(SOLVERS)),
        ):
            if not fits:
                raise UsageError(f"{option} is {allowed}, not {value}.")
        _ = self.budget
        return self

    @property
    def budget(self) -> float | None:
        """Seconds that training may take; None where nothing was said."""
        from cxrlt_ray.search.request import parse_seconds

        return None if self.time_budget is None else parse_seconds(self.time_budget, "--time-budget")

    @property
    def config_name(self) -> str:
        """The configuration that is asked for."""
        by_checkpoint = "stable_diffusion" if self.checkpoint else "latent" if self.autoencoder else TINY
        return self.config or (SMOKE if self.smoke else by_checkpoint)

    @property
    def overrides(self) -> dict[str, object]:
        """What the options say instead of the configuration."""
        names = ("steps", "autoencoder", "checkpoint", "text")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"steps": SMOKE_STEPS, **given} if self.smoke and self.config else given

    @property
    def images_a_set(self) -> int:
        """How many images are drawn for a set."""
        return SMOKE_EACH if self.smoke and "each" not in self.model_fields_set else self.each

    @property
    def steps_of_solver(self) -> int:
        """How many steps the solver takes."""
        small = self.smoke and "solver_steps" not in self.model_fields_set
        return SMOKE_SOLVER_STEPS if small else self.solver_steps
