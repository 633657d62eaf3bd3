"""A search space as Optuna sees it: domains of parameters -> points -> TrialConfigs. space_file.py reads one.

A parameter is a field of TrialConfig (runs/trial_config.py) or a setting of a loss or an objective (objectives/); a
`when` names parameters above it. A stage's parameter is called `stages.K.NAME`, K from 0, where Optuna or `start` name
it.
"""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, model_validator

from cxrlt_ray.config import Config
from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.metric import Metric
from cxrlt_ray.objectives.registry import find_objective
from cxrlt_ray.runs.records import Promote
from cxrlt_ray.runs.trial_config import Scalar, TrialConfig
from cxrlt_ray.search.budget import SearchSize

if TYPE_CHECKING:
    from cxrlt_ray.models.spec import ModelSpec, TrainedPart

OF_TEXT = {"queries", "text", "prompts", "query_layers", "query_width", "query_self_attention", "query_pooled"}
REDUCTION = 3  # ASHA keeps the best third at each rung
ENSEMBLE: Promote = "ensemble"


def grace(epochs: int) -> int:
    """ASHA's first rung: how many epochs every trial has before it may be stopped."""
    return max(1, min(2, epochs - 1))


class Domain(Config):
    """The values of a parameter: `choices`, `low` to `high`, or one `value`, `when` others have theirs."""

    choices: tuple[Scalar, ...] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    int: bool = False
    value: Scalar = None
    when: dict[str, Scalar | tuple[Scalar, ...]] = Field(default={})

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        given = set(self.model_fields_set) - {"when"}
        kinds = [{"choices"}, {"low", "high", "log", "int"}, {"value"}]
        if sum(bool(given & kind) for kind in kinds) != 1:
            raise ValueError("give one of `choices: [...]`, `low` and `high`, or `value`")
        if self.choices is not None and not self.choices:
            raise ValueError("`choices` is empty")
        if given & kinds[1]:
            if self.low is None or self.high is None:
                raise ValueError("a range needs both `low` and `high`")
            if self.low > self.high:
                raise ValueError(f"the range is upside down: low {self.low:g} is above high {self.high:g}")
            if self.log and self.low <= 0:
                raise ValueError(f"a log range needs low above 0, not {self.low:g}")
        return self

    @property
    def searched(self) -> bool:
        """Whether Optuna chooses."""
        return not self.fixed

    @property
    def fixed(self) -> bool:
        """Whether the value is given."""
        return self.choices is None and self.low is None

    def ends(self) -> tuple[Any, ...]:
        """The values to be checked: all choices, both ends of a range, or the value."""
        if self.choices is not None:
            return self.choices
        if self.fixed:
            return (self.value,)
        return (int(self.low or 0), int(self.high or 0)) if self.int else (self.low, self.high)

    def holds(self, chosen: Mapping[str, Any]) -> bool:
        """Whether every condition of `when` is met by the parameters chosen so far."""
        return all(
            name in chosen and chosen[name] in (values if isinstance(values, tuple) else (values,))
            for name, values in self.when.items()
        )

    def capped(self, limit: builtins.int) -> Domain:
        """The domain with searched numbers up to `limit`; the smallest at least."""
        if self.choices is not None:
            choices = [choice for choice in self.choices if isinstance(choice, (int, float))]
            return self.model_copy(update={"choices": tuple(c for c in choices if c <= limit) or (min(choices),)})
        if self.low is None or self.high is None:
            return self
        return self.model_copy(update={"high": max(self.low, min(self.high, limit))})

    def nearest(self, value: Scalar) -> Scalar:
        """`value`, or the largest allowed number below it; the smallest where all are above."""
        if self.allows(value) or not isinstance(value, (int, float)):
            return value
        below = [end for end in self.ends() if end <= value]
        return max(below) if below else min(self.ends())

    def allows(self, value: Any) -> bool:
        """Whether a start point may give this value."""
        if self.low is None or self.high is None:
            return value in self.ends()
        return isinstance(value, (int, float)) and self.low <= value <= self.high


@dataclass(frozen=True)
class Space:
    """A validated search space.

    epochs: of its longest trial. domains: of parameters, then of those of stages, `stages.K.NAME`; of several the first
    whose `when` holds. start: points to try
    first, by Optuna's parameter names. notes: to print. folder: where relative checkpoints are. storage: where the
    runs are that init_from names. images: how many a smoke run takes. folds: K, where the trials are of K folds.
    staged: whether it has stages. prune: whether ASHA stops trials. promote: by what those that
    go on are chosen.
    """

    name: str
    trials: int
    epochs: int
    domains: dict[str, tuple[Domain, ...]]
    start: tuple[dict[str, Scalar], ...] = ()
    notes: tuple[str, ...] = ()
    folder: str = ""
    storage: str | None = None
    images: int | None = None
    folds: int = 0
    staged: bool = False
    prune: bool = True
    promote: Promote = "map"

    def define(self, trial: Any) -> None:
        """Optuna's define-by-run function."""

        def suggest(key: str, domain: Domain) -> Any:
            if domain.choices is not None:
                return trial.suggest_categorical(key, list(domain.choices))
            low, high = domain.ends()
            if domain.int:
                return trial.suggest_int(key, low, high, log=domain.log)
            return trial.suggest_float(key, low, high, log=domain.log)

        self._walk(suggest)

    def to_config(self, params: Mapping[str, Any], seed: int = 0) -> TrialConfig:
        """The trial at the point `params`, which `define` suggested; `seed` unless the space searches it."""
        from cxrlt_ray.objectives import losses, registry
        from cxrlt_ray.runs.store import weights_of

        chosen = self._walk(lambda key, _: params[key])
        known = {name: value for name, value in chosen.items() if name in TrialConfig.model_fields}
        for name in ("checkpoint", "queries"):
            if self.folder and known.get(name) and "://" not in str(known[name]):
                known[name] = str(Path(self.folder, str(known[name])))  # Tune changes a trial's directory
        if known.get("text") and Path(self.folder, str(known["text"]), "config.json").is_file():
            known["text"] = str(Path(self.folder, str(known["text"])))
        if known.get("init_from") and self.storage is not None:
            uri = weights_of(self.storage, str(known["init_from"]), str(known["backbone"]))
            known |= {"checkpoint": uri, "pretrained": True}
        of_loss = losses.settings(chosen.get("loss", "bce"))
        of_objective = registry.settings_of(str(chosen.get("objective", "multilabel")))
        return TrialConfig.model_validate(
            {
                "epochs": self.epochs,
                "seed": seed,
                **known,
                "loss_settings": of_loss | {k: float(v) for k, v in chosen.items() if k in of_loss},
                "objective_settings": of_objective | {k: float(v) for k, v in chosen.items() if k in of_objective},
                "stages": tuple(self._stages(chosen)),
            }
        )

    def _stages(self, chosen: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The stages that hold, in order: each the values that it names."""
        stages: dict[str, dict[str, Any]] = {}
        for name, value in chosen.items():
            if name.startswith("stages."):
                _, number, field = name.split(".")
                stages.setdefault(number, {})[field] = value
        yield from (stage for stage in stages.values() if "epochs" in stage)

    def specs(self) -> list[ModelSpec]:
        """The ModelSpec of every kind of model that the space can make; raises UsageError for a bad mixture."""
        return list(dict.fromkeys(spec for config in self.kinds() for spec in config.specs()))

    def kinds(self) -> list[TrialConfig]:
        """A trial of every kind: one for each way to choose what shapes a model, and what a `when` looks at."""
        return self._kinds

    @cached_property
    def _kinds(self) -> list[TrialConfig]:
        try:
            configs = [self.to_config(point) for point in self._corners()]
        except ValidationError as error:
            raise UsageError(f"search space {self.name}: {message(error)}.") from None
        if fault := next(filter(None, (config.beginning_fault() or config.text_fault() for config in configs)), ""):
            raise UsageError(f"search space {self.name}: {fault}.")
        return configs

    @property
    def metric(self) -> Metric:
        """What judges trials. Raises UsageError where their objectives are judged by different metrics."""
        metrics = list(dict.fromkeys(config.metric for config in self.kinds()))
        if len(metrics) > 1:
            titles = " and ".join(sorted(metric.title for metric in metrics))
            raise UsageError(f"search space {self.name}: its trials are judged by {titles}, which do not compare.")
        return metrics[0]

    def _every_stage(self) -> Iterator[TrialConfig]:
        return (stage for config in self.kinds() for stage in config.staged())

    def learns_soft_targets(self) -> str:
        """An objective of the space that learns soft targets, or nothing."""
        return next((s.objective for s in self._every_stage() if find_objective(s.objective).needs.soft_targets), "")

    def reading(self) -> list[TrialConfig]:
        """The stages of the space whose objective reads texts."""
        return [stage for stage in self._every_stage() if find_objective(stage.objective).needs.texts]

    def parts(self) -> list[tuple[ModelSpec, TrainedPart]]:
        """Every backbone that is trained in part."""
        in_part = (s for s in self._every_stage() if s.image_lora or s.frozen_layers)
        return list(dict.fromkeys((stage.spec(), stage.trained_part) for stage in in_part))

    def heeds(self, need: str) -> bool:
        """Whether an objective of the space heeds what a run may have: a field of Needs, such as boxes, statements."""
        return any(getattr(find_objective(stage.objective).needs, need) for stage in self._every_stage())

    def sizes(self) -> list[int]:
        """The edges in pixels to which searched resolutions can be capped, largest first; without any, the largest."""
        domains = [domain for name, domains in self.domains.items() if _is_resolution(name) for domain in domains]
        ends = {int(end) for domain in domains if domain.searched for end in domain.ends()}
        return sorted(ends or {max(spec.resolution for spec in self.specs())}, reverse=True)

    def capped(self, pixels: int) -> Space:
        """The space with searched resolutions up to `pixels`, or at their smallest, and its start points so too."""
        domains = {
            name: tuple(domain.capped(pixels) if _is_resolution(name) else domain for domain in domains)
            for name, domains in self.domains.items()
        }

        def moved(key: str, value: Scalar) -> Scalar:
            name, _, number = key.partition("@")
            return value if not _is_resolution(name) else domains[name][int(number or 0)].nearest(value)

        start = tuple({key: moved(key, value) for key, value in point.items()} for point in self.start)
        return dataclasses.replace(self, domains=domains, start=start)

    def fitted(self, size: SearchSize) -> Space:
        """The space brought to the size of a search; ASHA stops trials of a small one no more.

        Of fewer than twice REDUCTION trials it would leave one.
        """
        if size.full:
            return self
        space = self.capped(size.pixels)
        epochs = self.epochs if self.staged else size.epochs
        return dataclasses.replace(space, epochs=epochs, prune=self.prune and size.trials >= 2 * REDUCTION)

    def label_texts(self) -> list[tuple[str, str]]:
        """Every text encoder with every style of prompts, by which a trial's head may know findings."""
        readers = [spec for spec in self.specs() if spec.text]
        values = {name: {getattr(spec, name) for spec in readers} for name in ("text", "prompts")}
        return sorted(product(values["text"], values["prompts"]))

    def cohorts(self) -> set[str]:
        """The values of `cohorts` that stages have."""
        return {stage.cohorts for stage in self._every_stage()}

    def grace(self, steps: int) -> int:
        """ASHA's first rung of `steps` reports: trials are compared in their last stage, as stages' scores are not."""
        before = max((config.total_epochs - config.staged()[-1].epochs for config in self.kinds()), default=0)
        return min(before + grace(steps - before), max(1, steps - 1))

    def rungs(self, steps: int) -> tuple[int, ...]:
        """ASHA's rungs of `steps` reports, in epochs: the first and its multiples by powers of REDUCTION."""
        rungs = [self.grace(steps)]
        while rungs[-1] * REDUCTION < steps:
            rungs.append(rungs[-1] * REDUCTION)
        return tuple(rung for rung in rungs if rung < steps)

    def starting(self, point: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """A start point of the file under Optuna's names. Raises ValueError for a value that is not allowed there."""
        values: dict[str, Scalar] = {}

        def choose(key: str, domain: Domain) -> Any:
            name = key.split("@")[0]
            if name not in point:
                return domain.ends()[0]
            if not domain.allows(point[name]):
                raise ValueError(f"'{name}': given {point[name]!r}, which its rule there does not allow")
            return values.setdefault(key, point[name])

        self._walk(choose)
        return values

    def _walk(self, choose: Callable[[str, Domain], Any]) -> dict[str, Any]:
        """Every parameter's value, in the file's order, by `choose` where it is searched."""
        chosen: dict[str, Any] = {}
        for name, domains in self.domains.items():
            for number, domain in enumerate(domains):
                if domain.holds(chosen):
                    chosen[name] = domain.value if domain.fixed else choose(_key(name, number), domain)
                    break
        return chosen

    def _corners(self) -> Iterator[dict[str, Any]]:
        """Points that take every choice of what shapes a model, and of what a `when` looks at.

        Of the texts that a head reads, and of that head's size, each choice once: with all others they would be many
        times as many.
        """
        from cxrlt_ray.models import ModelSpec

        asked_by = {name for domains in self.domains.values() for domain in domains for name in domain.when}
        shaping = {field.name for field in dataclasses.fields(ModelSpec)} - {"drop_rate", *OF_TEXT} | asked_by
        # what a trial takes, and how long
        shaping |= {"cohorts", "tta", "refit", "frozen_backbone", "frozen_layers", "image_lora", "epochs", "objective"}
        corners = [{**_first_values(self), **point} for point in self._crossed(shaping)]
        yield from corners
        for key, value in self._choices_of_text(asked_by):
            yield from islice(({**point, key: value} for point in corners if self._uses(key, point)), 1)

    def _choices_of_text(self, asked_by: set[str]) -> Iterator[tuple[str, Scalar]]:
        """Of each searched parameter of OF_TEXT that no `when` looks at, every value but the first."""
        for name, domains in self.domains.items():
            if name.split(".")[-1] in OF_TEXT - asked_by:
                for number, domain in enumerate(domains):
                    yield from ((_key(name, number), value) for value in domain.ends()[1:] if domain.searched)

    def _uses(self, key: str, point: Mapping[str, Any]) -> bool:
        """Whether the parameter `key` holds at a point."""
        used: set[str] = set()

        def note(name: str, _: Domain) -> Any:
            used.add(name)
            return point[name]

        self._walk(note)
        return key in used

    def _crossed(self, shaping: set[str]) -> Iterator[dict[str, Any]]:
        """Points that take every mixture of the choices of the parameters `shaping`."""
        todo: list[dict[str, Any]] = [{}]
        while todo:
            point = todo.pop()
            open_: list[tuple[str, Domain]] = []

            def choose(key: str, domain: Domain, point: dict[str, Any] = point, open_: list[Any] = open_) -> Any:
                name = key.split("@")[0]
                if key not in point and {name, name.split(".")[-1]} & shaping and not open_:
                    open_.append((key, domain))
                return point.get(key, domain.ends()[0])

            self._walk(choose)
            if open_:
                key, domain = open_[0]
                todo += [{**point, key: value} for value in domain.ends()]
            else:
                yield point


def _first_values(space: Space) -> dict[str, Any]:
    """The first value of every searched parameter."""
    return {
        _key(name, number): domain.ends()[0]
        for name, domains in space.domains.items()
        for number, domain in enumerate(domains)
        if domain.searched
    }


def _is_resolution(name: str) -> bool:
    """Whether a parameter is the resolution, of the trial or of a stage."""
    return name.split(".")[-1] == "resolution"


def message(error: ValidationError) -> str:
    """The first mistake that pydantic found, in its words or ours."""
    return str(error.errors()[0]["msg"]).removeprefix("Value error, ")


def _key(name: str, number: int) -> str:
    """Optuna's name of a parameter under its domain `number`: each has a distribution of its own."""
    return name if number == 0 else f"{name}@{number}"
