"""A search space: a YAML file of what trials may choose -> Optuna's define-by-run -> a TrialConfig.

    description: what it is for
    trials: 12
    epochs: 6
    optional_backbones: [tf_efficientnet_lite0]        # left out, with a note, where its package is missing
    parameters:
      backbone: {choices: [tf_efficientnet_lite0, test_convnext]}
      pretrained:                                      # several rules: the first whose `when` holds
        - {when: {backbone: test_convnext}, value: false}
        - {value: true}
      lr: {low: 1.0e-4, high: 1.0e-2, log: true}
      batch_size: 32                                   # fixed
    start:
      - {backbone: tf_efficientnet_lite0, lr: 1.0e-3}  # tried first; what is not given is sampled

A parameter is a field of TrialConfig or a setting of a loss (losses.py); a `when` looks at parameters
above it. To add a search dimension: a field of TrialConfig, read where it acts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from cxrlt_ray.config import Config, find, read_yaml, validate
from cxrlt_ray.errors import UsageError

REDUCTION = 3  # ASHA keeps the best third at each rung
Scalar = bool | int | float | str | None


def grace(epochs: int) -> int:
    """ASHA's first rung: how many epochs every trial has before it may be stopped."""
    return max(1, min(2, epochs - 1))


class TrialConfig(Config):
    """Everything that makes a trial, besides the data it is given."""

    backbone: str
    resolution: Annotated[int, Field(ge=16, le=4096)]
    epochs: Annotated[int, Field(ge=1)]
    pretrained: bool = True
    checkpoint: str | None = None
    frozen_backbone: bool = False
    head: str = "linear"
    in_chans: Literal[1, 3] = 3
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loss: str = "bce"
    loss_settings: dict[str, float] = Field(default={})
    class_weight_exponent: Annotated[float, Field(ge=0, le=1)] = 0.5
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    batch_size: Annotated[int, Field(ge=1)] = 32
    accumulation: Annotated[int, Field(ge=1)] = 1
    clip_norm: Annotated[float, Field(ge=0)] = 1.0  # 0: no clipping
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0: no average
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # auto: on a GPU, where it saves more than it costs
    augment: Annotated[float, Field(ge=0, le=1)] = 0.3
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    crop: Annotated[float, Field(ge=0.25, le=1)] = 1.0  # of the edge: random in training, central after it
    seed: int = 0

    def spec(self) -> Any:
        """The models.ModelSpec of this trial."""
        from cxrlt_ray.models import ModelSpec

        return ModelSpec(**{field.name: getattr(self, field.name) for field in dataclasses.fields(ModelSpec)})


class Rule(Config):
    """How one parameter gets its value: `choices`, `low` and `high`, or `value`, `when` others have theirs."""

    choices: tuple[Scalar, ...] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    int: bool = False
    value: Scalar = None
    when: dict[str, Scalar | tuple[Scalar, ...]] = Field(default={})

    @model_validator(mode="after")
    def _one_kind(self) -> Rule:
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
            name in chosen and chosen[name] in (wanted if isinstance(wanted, tuple) else (wanted,))
            for name, wanted in self.when.items()
        )

    def allows(self, value: Any) -> bool:
        """Whether a start point may give this value."""
        if self.low is None or self.high is None:
            return value in self.ends()
        return isinstance(value, (int, float)) and self.low <= value <= self.high


class SpaceFile(Config):
    """The keys of a search-space file."""

    description: str = ""
    trials: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=1)]
    optional_backbones: tuple[str, ...] = ()
    parameters: dict[str, Scalar | Rule | tuple[Rule, ...]]
    start: tuple[dict[str, Scalar], ...] = ()


@dataclass(frozen=True)
class Space:
    """A validated search space. `start`: points to try first, by Optuna's parameter names; `notes`: what to tell;
    `folder`: where relative checkpoints are.
    """

    name: str
    trials: int
    epochs: int
    rules: dict[str, tuple[Rule, ...]]
    start: tuple[dict[str, Scalar], ...] = ()
    notes: tuple[str, ...] = ()
    folder: str = ""

    def define(self, trial: Any) -> None:
        """Optuna's define-by-run function."""

        def suggest(key: str, rule: Rule) -> Any:
            if rule.choices is not None:
                return trial.suggest_categorical(key, list(rule.choices))
            low, high = rule.ends()
            if rule.int:
                return trial.suggest_int(key, low, high, log=rule.log)
            return trial.suggest_float(key, low, high, log=rule.log)

        self._walk(suggest)

    def to_config(self, params: Mapping[str, Any], seed: int = 0) -> TrialConfig:
        """The trial at the point `params`, which `define` suggested; `seed` unless the space searches it."""
        from cxrlt_ray import losses

        chosen = self._walk(lambda key, _: params[key])
        known = {name: value for name, value in chosen.items() if name in TrialConfig.model_fields}
        if self.folder and known.get("checkpoint") and "://" not in str(known["checkpoint"]):
            known["checkpoint"] = str(Path(self.folder, str(known["checkpoint"])))  # Tune changes a trial's directory
        settings = losses.settings(chosen.get("loss", "bce"))
        return TrialConfig.model_validate(
            {
                "epochs": self.epochs,
                "seed": seed,
                **known,
                "loss_settings": settings | {k: float(v) for k, v in chosen.items() if k in settings},
            }
        )

    def specs(self) -> list[Any]:
        """The models.ModelSpec of every kind of model that the space can make."""
        specs = {self.to_config(point).spec(): None for point in self._corners()}
        return list(specs)

    def starting(self, point: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """A start point of the file under Optuna's names. Raises ValueError for a value that is not allowed there."""
        found: dict[str, Scalar] = {}

        def choose(key: str, rule: Rule) -> Any:
            name = key.split("@")[0]
            if name not in point:
                return rule.ends()[0]
            if not rule.allows(point[name]):
                raise ValueError(f"'{name}': given {point[name]!r}, which its rule there does not allow")
            return found.setdefault(key, point[name])

        self._walk(choose)
        return found

    def _walk(self, choose: Callable[[str, Rule], Any]) -> dict[str, Any]:
        """Every parameter's value, in the file's order, `choose`n where it is searched."""
        chosen: dict[str, Any] = {}
        for name, rules in self.rules.items():
            for number, rule in enumerate(rules):
                if rule.holds(chosen):
                    chosen[name] = rule.value if rule.fixed else choose(_key(name, number), rule)
                    break
        return chosen

    def _corners(self) -> Iterator[dict[str, Any]]:
        """Points that take every choice of what shapes a model, and of what a `when` looks at."""
        from cxrlt_ray.models import ModelSpec

        shaping = {field.name for field in dataclasses.fields(ModelSpec)} - {"drop_rate"}
        shaping |= {name for rules in self.rules.values() for rule in rules for name in rule.when}
        todo: list[dict[str, Any]] = [{}]
        while todo:
            point = todo.pop()
            open_: list[tuple[str, Rule]] = []

            def choose(key: str, rule: Rule, point: dict[str, Any] = point, open_: list[Any] = open_) -> Any:
                if key not in point and key.split("@")[0] in shaping and not open_:
                    open_.append((key, rule))
                return point.get(key, rule.ends()[0])

            self._walk(choose)
            if open_:
                key, rule = open_[0]
                todo += [{**point, key: value} for value in rule.ends()]
            else:
                yield {**_Ends(self), **point}


class _Ends(dict[str, Any]):
    """The first value of every searched parameter."""

    def __init__(self, space: Space) -> None:
        super().__init__(
            {
                _key(name, number): rule.ends()[0]
                for name, rules in space.rules.items()
                for number, rule in enumerate(rules)
                if rule.searched
            }
        )


def load_space(name: str, epochs: int | None = None) -> Space:
    """The search space `name` (a path, or found in search_spaces/), for `epochs` instead of its own.

    Raises UsageError that names the file and, for every mistake, the key, what was given and what is allowed.
    """
    path = find("search_spaces", name)
    content = validate(SpaceFile, _rules_only(read_yaml(path), path), path)
    rules = {
        key: (given,) if isinstance(given, Rule) else given if isinstance(given, tuple) else (Rule(value=given),)
        for key, given in content.parameters.items()
    }
    if epochs is not None and epochs < 1:
        raise UsageError(f"--epochs must be at least 1, not {epochs}.")
    space = Space(path.stem, content.trials, epochs or content.epochs, rules, folder=str(Path.cwd()))
    mistakes = list(_parameter_mistakes(rules)) or list(_start_mistakes(space, content.start))
    if mistakes:
        raise UsageError(f"{path}: {'; '.join(mistakes)}.")
    missing = _missing(content.optional_backbones)
    start = tuple(space.starting(point) for point in content.start if point.get("backbone") not in missing)
    return _without(dataclasses.replace(space, start=start), missing, path)


def _rules_only(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The file's content with every mapping under `parameters` validated as a rule, so that messages speak of it."""
    parameters = content.get("parameters")
    if not isinstance(parameters, dict):
        return content
    made = {
        key: validate(Rule, given, f"{path}: key 'parameters.{key}'")
        if isinstance(given, dict)
        else tuple(validate(Rule, each, f"{path}: key 'parameters.{key}'") for each in given)
        if isinstance(given, list) and all(isinstance(each, dict) for each in given)
        else given
        for key, given in parameters.items()
    }
    return {**content, "parameters": made}


def _parameter_mistakes(rules: dict[str, tuple[Rule, ...]]) -> Iterator[str]:
    from cxrlt_ray import losses

    settings = {name for loss in losses.LOSSES for name in losses.settings(loss)}
    fields = set(TrialConfig.model_fields) - {"epochs", "loss_settings"}
    for name in ("backbone", "resolution"):
        if name not in rules:
            yield f"key 'parameters.{name}' is missing"
    above: list[str] = []
    for name, given in rules.items():
        if name not in fields | settings:
            yield f"unknown key 'parameters.{name}'; allowed: {', '.join(sorted(fields | settings))}"
            continue
        for rule in given:
            for other in rule.when:
                if other not in above:
                    yield f"key 'parameters.{name}': `when` names '{other}', which is not a parameter above it"
            for value in rule.ends():
                if fault := _value_mistake(name, value):
                    yield f"key 'parameters.{name}': given {value!r}: {fault}"
        above.append(name)


def _value_mistake(name: str, value: Any) -> str:
    from cxrlt_ray import losses
    from cxrlt_ray.models import backbones, heads

    if name == "backbone":
        if isinstance(value, str) and backbones.known(value):
            return ""
        return f"timm has no such backbone; near it are {', '.join(backbones.suggestions(str(value))) or 'none'}"
    for kind, registry in (("loss", losses.LOSSES), ("head", heads.HEADS)):
        if name == kind:
            return "" if value in registry else f"there is no such {kind}; there are {', '.join(registry)}"
    field = TrialConfig.model_fields.get(name)
    kind_of: Any = field.annotation if field else float  # a loss's setting is a number
    if kind_of is int and isinstance(value, float):
        return "a whole number is wanted (a range of them needs `int: true`)"
    adapter: TypeAdapter[Any] = TypeAdapter(
        Annotated[kind_of, *field.metadata] if field and field.metadata else kind_of
    )
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    return ""


def _start_mistakes(space: Space, start: tuple[dict[str, Scalar], ...]) -> Iterator[str]:
    for number, point in enumerate(start):
        for name in point:
            if name not in space.rules:
                yield f"key 'start.{number}.{name}': not one of the parameters"
        try:
            space.starting(point)
        except ValueError as error:
            yield f"key 'start.{number}': {error}"


def _missing(optional: tuple[str, ...]) -> list[str]:
    """The optional backbones whose package of weights is not installed."""
    from cxrlt_ray.models import weights

    return [name for name in optional if weights.packaged(name) and not weights.installed(name)]


def _without(space: Space, missing: list[str], path: Path) -> Space:
    """The space without the backbones `missing`, and a note on each."""
    from cxrlt_ray.models.weights import OFFLINE

    if not missing:
        return space
    left = []
    for rule in space.rules["backbone"]:
        kept = tuple(name for name in rule.ends() if name not in missing)
        if kept:
            left.append(rule.model_copy(update={"choices": kept}) if rule.choices is not None else rule)
    if not left:
        raise UsageError(f"{path}: every backbone needs weights that are not installed: {OFFLINE}.")
    notes = tuple(f"Left out: {name}, whose weights are not installed ({OFFLINE})" for name in missing)
    return dataclasses.replace(space, rules={**space.rules, "backbone": tuple(left)}, notes=notes)


def _key(name: str, number: int) -> str:
    """Optuna's name of a parameter under its rule `number`: rules have distributions of their own."""
    return name if number == 0 else f"{name}@{number}"
