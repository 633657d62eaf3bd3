"""pretraining/NAME.yaml and --set: one TrialConfig, and how its training is watched.

description: what it is for
parameters:                    # fields of TrialConfig and settings of the objective, as in a search space
  objective: simclr
  backbone: convnext_small.fb_in22k_ft_in1k
  resolution: 224
  epochs: 100
stages: []                     # as in a search space; each changes what it names
continued: {lr: 1.0e-5}        # in the place of parameters, where training goes on from weights
monitor: {every: 500}          # Monitoring
smoke:                         # of --smoke: in the place of parameters, stages and monitor
  parameters: {backbone: test_convnext, resolution: 32}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field, ValidationError

from cxrlt_ray.config import Config, find, names, read_yaml, validate
from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives import registry
from cxrlt_ray.pretraining.measures import Limits
from cxrlt_ray.runs.trial_config import ALL, Scalar, TrialConfig

FOLDER = "pretraining"
MONITOR = "monitor."  # before a key of Monitoring, in --set


class Monitoring(Config):
    """every: steps between two measurements. images: to measure by, kept from training. limits: when to stop."""

    every: Annotated[int, Field(ge=1)] = 500
    images: Annotated[int, Field(ge=16)] = 1000
    limits: Limits = Limits()


class SmallFile(Config):
    """What --smoke puts in the place of a file's parts; a file with stages has others."""

    parameters: dict[str, Scalar] = Field(default={})
    stages: tuple[dict[str, Scalar], ...] = ()
    monitor: dict[str, Scalar] = Field(default={})


class PretrainFile(Config):
    """The keys of a pretraining/ file."""

    description: str = ""
    parameters: dict[str, Scalar]
    stages: tuple[dict[str, Scalar], ...] = ()
    continued: dict[str, Scalar] = Field(default={})
    monitor: dict[str, Scalar] = Field(default={})
    smoke: SmallFile = SmallFile()


@dataclass(frozen=True)
class Settings:
    """What is trained and how it is watched. source: the file, for messages."""

    config: TrialConfig
    monitoring: Monitoring
    source: str


def load_settings(
    name: str | None,
    method: str | None,
    options: Mapping[str, Scalar],
    assignments: Sequence[str] = (),
    smoke: bool = False,
    seed: int = 0,
) -> Settings:
    """The settings of file `name` (a path, or found in pretraining/; without one, that of the method).

    options: fields of TrialConfig that the command names, in the place of the file's. assignments: KEY=VALUE, the last
    word; monitor.KEY is one of Monitoring or its limits, stages.K.KEY one of stage K. Raises UsageError that names file
    and key.
    """
    path = find(FOLDER, name or _file_of(method))
    content = validate(PretrainFile, read_yaml(path), path)
    parameters, stages, watched = dict(content.parameters), list(content.stages), dict(content.monitor)
    given = {key: value for key, value in options.items() if value is not None}
    begun = parameters | given | _assigned(assignments)
    if begun.get("checkpoint") or begun.get("pretrained"):
        parameters |= content.continued
        watched |= {k.removeprefix(MONITOR): parameters.pop(k) for k in list(parameters) if k.startswith(MONITOR)}
    if smoke:
        parameters |= content.smoke.parameters
        watched |= content.smoke.monitor
        stages = list(content.smoke.stages)
    if stages and (fixed := given.keys() & {"epochs", "steps", "resolution"}):
        raise UsageError(
            f"--{min(fixed)}: {path} has stages, which have their own: give `--set stages.0.{min(fixed)}=...`."
        )
    parameters |= given
    for text in assignments:
        _assign(text, parameters, stages, watched)
    own = str(parameters.get("objective"))
    if method is not None and own != method:
        raise UsageError(f"--method {method}: {path} is for {own}: leave one of both out.")
    where = f"{path}{' and --set' if assignments else ''}"
    return Settings(_config(parameters, stages, seed, where), _monitoring(watched, where), str(path))


def _file_of(method: str | None) -> str:
    """The name of a method's own file. Raises UsageError for one that is none, or has no file."""
    known = registry.self_supervised()
    if method not in known:
        raise UsageError(
            f"--method is {', '.join(known)}, not '{method}': those that learn from images alone."
            if method
            else f"--method says how to learn ({', '.join(known)}), or --config which file of {FOLDER}/ does."
        )
    if method not in names(FOLDER):
        raise UsageError(f"--method {method} has no file {FOLDER}/{method}.yaml: give one by --config.")
    return method


def _assigned(texts: Sequence[str]) -> dict[str, Any]:
    """What KEY=VALUE give to the keys of all stages."""
    pairs = (text.partition("=") for text in texts)
    return {key: _value(written) for key, _, written in pairs if "." not in key}


def _assign(text: str, parameters: dict[str, Any], stages: list[dict[str, Scalar]], watched: dict[str, Any]) -> None:
    """Put KEY=VALUE where it belongs."""
    key, equals, written = text.partition("=")
    if not (key and equals):
        raise UsageError(f"--set is KEY=VALUE, such as lr=1e-4; not '{text}'.")
    value = _value(written)
    if key.startswith(MONITOR):
        watched[key.removeprefix(MONITOR)] = value
        return
    if not key.startswith("stages."):
        parameters[key] = value
        return
    _, number, field = [*key.split("."), "", ""][:3]
    if not (number.isdigit() and field and int(number) < len(stages)):
        raise UsageError(f"--set {key}: there are {len(stages)} stages, stages.0.NAME the first one's.")
    stages[int(number)] = {**stages[int(number)], field: value}


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if not isinstance(value, str):
        return value
    try:
        return float(value)  # YAML 1.1 reads 1e-4 as text
    except ValueError:
        return value


def _config(parameters: dict[str, Any], stages: list[dict[str, Scalar]], seed: int, where: str) -> TrialConfig:
    """The TrialConfig of these parameters, on all cohorts."""
    known = registry.self_supervised()
    method = str(parameters.get("objective"))
    if method not in known:
        raise UsageError(
            f"{where}: key 'objective': given {method!r}: what learns from images alone is {', '.join(known)}."
        )
    settings = registry.settings_of(method)
    fields = {key: value for key, value in parameters.items() if key in TrialConfig.model_fields}
    own = {key: value for key, value in parameters.items() if key in settings}
    if unknown := parameters.keys() - fields.keys() - own.keys():
        raise UsageError(
            f"{where}: unknown key '{min(unknown)}'; {method} has {', '.join(settings) or 'no settings'}, and a trial "
            f"{', '.join(sorted(set(TrialConfig.model_fields) - {'stages'}))}."
        )
    if wrong := [key for key, value in own.items() if isinstance(value, bool) or not isinstance(value, int | float)]:
        raise UsageError(f"{where}: key '{wrong[0]}': given {own[wrong[0]]!r}: a number is wanted.")
    fields = {"seed": seed, "cohorts": ALL, "pretrained": False, **fields}
    fields |= {"objective_settings": settings | {key: float(value) for key, value in own.items()}, "stages": stages}
    if fields.get("checkpoint"):
        fields["pretrained"] = True
    if stages:
        fields.setdefault("epochs", 1)
    try:
        config = TrialConfig.model_validate(fields)
    except ValidationError as error:
        mistake = error.errors()[0]
        key = ".".join(str(part) for part in mistake["loc"])
        message = str(mistake["msg"]).removeprefix("Value error, ")
        raise UsageError(f"{where}: {f'key {key!r}: ' if key else ''}{message}.") from None
    _check(config, where)
    return config


def _check(config: TrialConfig, where: str) -> None:
    """Raises UsageError for what a trial may be and a pretraining not."""
    for stage in config.staged():
        if stage.objective not in registry.self_supervised():
            raise UsageError(f"{where}: stage objective {stage.objective} needs labels or texts.")
        if stage.batch_size < 2:
            raise UsageError(
                f"{where}: key 'batch_size': given {stage.batch_size}: images are compared with others of their batch "
                "(or normalised by them): take 2 at least, and hundreds where they fit."
            )
        if stage.frozen_backbone or stage.refit or stage.patience or stage.tta != "none":
            raise UsageError(
                f"{where}: frozen_backbone, refit, patience and tta mean nothing to a backbone that is pretrained."
            )


def check_backbone(config: TrialConfig) -> None:
    """Raises UsageError for a backbone that a stage's objective cannot train; nothing is loaded."""
    import torch

    from cxrlt_ray.models import Classifier

    for stage in config.staged():
        with torch.device("meta"):
            model = Classifier(stage.spec(), 1)
        registry.find_objective(stage.objective)(stage.objective_spec(), np.empty((0, 1), np.int8)).check(model)


def _monitoring(watched: dict[str, Any], where: str) -> Monitoring:
    limits = {key: value for key, value in watched.items() if key in Limits.model_fields}
    others = {key: value for key, value in watched.items() if key not in limits}
    if unknown := others.keys() - (Monitoring.model_fields.keys() - {"limits"}):
        allowed = [*(set(Monitoring.model_fields) - {"limits"}), *Limits.model_fields]
        raise UsageError(f"{where}: unknown key '{MONITOR}{min(unknown)}'; allowed: {', '.join(sorted(allowed))}.")
    return validate(Monitoring, {**others, "limits": limits}, where)
