"""A search-space file: YAML of what trials may choose, validated with every mistake named at once -> a search.Space.

    description: what it is for
    trials: 12
    epochs: 6                                          # of a trial without stages
    optional_backbones: [tf_efficientnet_lite0]        # left out, with a note, where its package is missing
    fallback_backbones: [test_convnext]                # left out where an optional one is at hand
    parameters:
      backbone: {choices: [tf_efficientnet_lite0, test_convnext]}
      pretrained:                                      # several rules: the first whose `when` holds
        - {when: {backbone: test_convnext}, value: false}
        - {value: true}
      lr: {low: 1.0e-4, high: 1.0e-2, log: true}
      batch_size: 32                                   # fixed
    stages:                                            # one after the other, in a trial; each changes what it names
      - {epochs: 1, frozen_backbone: true}
      - {epochs: 5, frozen_backbone: false, lr: {low: 1.0e-5, high: 1.0e-3, log: true}}
      - {epochs: 2, when: {backbone: test_convnext}, resolution: 128}
    start:
      - {backbone: tf_efficientnet_lite0, lr: 1.0e-3}  # tried first; what is not given is sampled
    smoke:                                             # of --smoke: the same structure with small models and images
      backbones: {convnext_small.fb_in22k_ft_in1k_384: test_convnext}
      resolutions: {384: 64}
      texts: {pubmedbert: minilm}

A parameter is a field of TrialConfig (runs/trial_config.py) or a setting of a loss or an objective (objectives/); a
`when` names parameters above it. A stage's parameter is called `stages.K.NAME`, K from 0, where Optuna or `start` name
it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from cxrlt_ray.config import Config, find, read_yaml, validate
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.records import Promote
from cxrlt_ray.runs.trial_config import WHOLE, Scalar, TrialConfig
from cxrlt_ray.search.space import Domain, Space, message
from cxrlt_ray.storage import Store

SMOKE_IMAGES = 300


class Smoke(Config):
    """What --smoke puts in a space's place: backbones, resolutions and text encoders one for one, and parameters."""

    backbones: dict[str, str] = Field(default={})
    resolutions: dict[int, int] = Field(default={})
    texts: dict[str, str] = Field(default={})
    parameters: dict[str, Scalar] = Field(default={})
    trials: Annotated[int, Field(ge=1)] = 2
    epochs: Annotated[int, Field(ge=1)] = 1  # of a trial, and of each stage
    images: Annotated[int, Field(ge=200)] = SMOKE_IMAGES
    folds: Annotated[int, Field(ge=2)] = 2  # where the space has folds


class SpaceFile(Config):
    """The keys of a search-space file."""

    description: str = ""
    trials: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=1)] = 1
    optional_backbones: tuple[str, ...] = ()
    fallback_backbones: tuple[str, ...] = ()
    parameters: dict[str, Scalar | Domain | tuple[Domain, ...]]
    stages: tuple[dict[str, Any], ...] = ()
    folds: Annotated[int, Field(ge=0)] = 0  # of every trial, unless --folds says otherwise
    prune: bool = True  # ASHA stops trials that lag; false: every trial is trained to its end
    promote: Promote = "map"  # by what it chooses those that go on: their own mAP, or what they add to the ensemble
    start: tuple[dict[str, Scalar], ...] = ()
    smoke: Smoke | None = None

    @model_validator(mode="after")
    def _lasting(self) -> SpaceFile:
        if self.stages and "epochs" in self.model_fields_set:
            raise ValueError("`epochs` and `stages` are both given: stages have epochs of their own")
        if not self.stages and "epochs" not in self.model_fields_set:
            raise ValueError("key 'epochs' is missing (or `stages`, with epochs of their own)")
        if self.fallback_backbones and not self.optional_backbones:
            raise ValueError("`fallback_backbones` without `optional_backbones`: there is nothing to fall back from")
        return self


def load_space(name: str, epochs: int | None = None, smoke: bool = False, storage: str | None = None) -> Space:
    """The search space `name` (a path, or found in search_spaces/), for `epochs` instead of its own.

    smoke: in small, as its `smoke` says. storage: of the runs that init_from names.
    Raises UsageError that names the file and, for every mistake, the key, what was given and what is allowed.
    """
    path = find("search_spaces", name)
    text = read_yaml(path)
    small = None
    if smoke:
        if not isinstance(text.get("smoke"), dict):
            raise UsageError(f"{path} has no `smoke:` part, which says what --smoke is to put in its place.")
        small = validate(Smoke, text["smoke"], f"{path}: key 'smoke'")
        text = _smoked(text, small)
    content = validate(SpaceFile, _with_domains(text, path), path)
    domains = {key: _as_domains(value) for key, value in content.parameters.items()}
    domains |= _stage_domains(content.stages, path)
    if epochs is not None and epochs < 1:
        raise UsageError(f"--epochs must be at least 1, not {epochs}.")
    if epochs is not None and content.stages:
        raise UsageError(f"--epochs: {path} has stages, which have epochs of their own: change them there.")
    if content.folds == 1:
        raise UsageError(f"{path}: key 'folds': given 1: at least 2 folds are wanted, or 0 for none.")
    space = Space(
        path.stem,
        content.trials,
        epochs or content.epochs,
        domains,
        folder=str(Path.cwd()),
        storage=None if storage is None else Store(storage).absolute().uri,  # Tune changes a trial's directory
        images=small.images if small else None,
        folds=min(content.folds, small.folds) if small else content.folds,
        staged=bool(content.stages),
        prune=content.prune,
        promote=content.promote,
    )
    mistakes = list(_parameter_mistakes(domains)) or list(_start_mistakes(space, content.start))
    if mistakes:
        raise UsageError(f"{path}: {'; '.join(mistakes)}.")
    missing = _missing(content.optional_backbones)
    values = {value for domain in domains["backbone"] for value in domain.ends()}
    if small is None and (strange := set(content.fallback_backbones) - values):
        raise UsageError(f"{path}: key 'fallback_backbones': '{sorted(strange)[0]}' is no value of backbone.")
    at_hand = values.intersection(content.optional_backbones) - set(missing)
    left_out = {*missing, *(content.fallback_backbones if at_hand else ())}
    start = tuple(space.starting(point) for point in content.start if point.get("backbone") not in left_out)
    space = _without(dataclasses.replace(space, start=start), left_out, missing, path)
    if content.stages:
        space = dataclasses.replace(space, epochs=max(config.total_epochs for config in space.kinds()))
    return space


def _smoked(content: dict[str, Any], small: Smoke) -> dict[str, Any]:
    """The file's content with small backbones and resolutions in the place of the large, and one epoch a stage."""

    def changed(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {k: changed(v, key if k in ("choices", "value") else k) for k, v in value.items()}
        if isinstance(value, list):
            items = [changed(item, key) for item in value]
            # several large backbones may have one small one
            one_for_one = ("backbone", "resolution", "text")
            return list({repr(item): item for item in items}.values()) if key in one_for_one else items
        if key == "backbone":
            return small.backbones.get(value, value)
        if key == "resolution":
            return small.resolutions.get(value, value)
        if key == "text":
            return small.texts.get(value, value)
        return small.epochs if key == "epochs" else value

    text = {key: value for key, value in content.items() if key != "smoke"}
    parameters = {**changed(text.get("parameters", {}), ""), **small.parameters}
    text |= {"parameters": parameters, "trials": small.trials}
    text |= {key: changed(text[key], "") for key in ("stages", "start") if key in text}
    fixed = set(small.parameters)
    text["stages"] = [{k: v for k, v in stage.items() if k not in fixed} for stage in text.get("stages", [])]
    text["start"] = [
        {k: v for k, v in point.items() if k.split(".")[-1] not in fixed} for point in text.get("start", [])
    ]
    # points that differed in a large backbone alone are one now
    text["start"] = list({repr(point): point for point in text["start"]}.values())
    return text if text["stages"] else {**text, "epochs": small.epochs}


def _as_domains(value: Scalar | Domain | tuple[Domain, ...]) -> tuple[Domain, ...]:
    if isinstance(value, tuple):
        return value
    return (value,) if isinstance(value, Domain) else (Domain(value=value),)


def _stage_domains(stages: tuple[dict[str, Any], ...], path: Path) -> dict[str, tuple[Domain, ...]]:
    """The domains of the stages' parameters, each under the stage's own `when`."""
    domains: dict[str, tuple[Domain, ...]] = {}
    for number, stage in enumerate(stages):
        where = f"{path}: key 'stages.{number}"
        if "epochs" not in stage:
            raise UsageError(f"{where}' has no `epochs`.")
        when = stage.get("when", {})
        if not isinstance(when, dict):
            raise UsageError(f"{where}.when': given {when!r}: a mapping of parameters to their values is wanted.")
        for name, content in stage.items():
            if name == "when":
                continue
            items = [
                item if isinstance(item, dict) else {"value": item}
                for item in (content if isinstance(content, list) else [content])
            ]
            domains[f"stages.{number}.{name}"] = tuple(
                validate(Domain, {**item, "when": {**when, **item.get("when", {})}}, f"{where}.{name}'")
                for item in items
            )
    return domains


def _with_domains(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The file's content with every mapping under `parameters` validated as a domain, so that messages name it."""
    parameters = content.get("parameters")
    if not isinstance(parameters, dict):
        return content

    def validated(key: str, value: Any) -> Any:
        where = f"{path}: key 'parameters.{key}'"
        if isinstance(value, dict):
            return validate(Domain, value, where)
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return tuple(validate(Domain, item, where) for item in value)
        return value

    return {**content, "parameters": {key: validated(key, value) for key, value in parameters.items()}}


def _parameter_mistakes(domains: dict[str, tuple[Domain, ...]]) -> Iterator[str]:
    from cxrlt_ray.objectives import losses, registry

    settings = {name for loss in losses.LOSSES for name in losses.settings(loss)} | registry.setting_names()
    fields = set(TrialConfig.model_fields) - {"epochs", "loss_settings", "objective_settings", "stages"}
    for name in ("backbone", "resolution"):
        if name not in domains:
            yield f"key 'parameters.{name}' is missing"
    above: list[str] = []
    for name, alternatives in domains.items():
        staged, own = name.startswith("stages."), name.split(".")[-1]
        key = name if staged else f"parameters.{name}"
        allowed = (fields | {"epochs"} if staged else fields) | settings
        if staged and own in WHOLE:
            yield f"key '{key}': it is the trial's as a whole, a stage cannot change it"
            continue
        if own not in allowed:
            yield f"unknown key '{key}'; allowed: {', '.join(sorted(allowed - (WHOLE if staged else set())))}"
            continue
        for domain in alternatives:
            for other in domain.when:
                if other not in above:
                    yield f"key '{key}': `when` names '{other}', which is not a parameter above it"
            for value in domain.ends():
                if fault := _value_mistake(own, value):
                    yield f"key '{key}': given {value!r}: {fault}"
        above.append(name)


def _value_mistake(name: str, value: Any) -> str:
    from cxrlt_ray.models import backbones, fusion, heads
    from cxrlt_ray.objectives import losses, registry

    if name == "backbone":
        if isinstance(value, str) and backbones.known(value):
            return ""
        return f"timm has no such backbone; near it are {', '.join(backbones.suggestions(str(value))) or 'none'}"
    objectives = registry.all_objectives()
    registries: dict[str, Iterable[str]] = {
        "loss": losses.LOSSES,
        "head": heads.HEADS,
        "fusion": ("none", *fusion.FUSIONS),
    }
    registries["objective"] = objectives
    names = registries.get(name)
    if names is not None:
        return "" if value in names else f"there is no such {name}; there are {', '.join(names)}"
    field = TrialConfig.model_fields.get(name)
    if field is None and isinstance(value, int | float):
        settings = [objective.settings[name] for objective in objectives.values() if name in objective.settings]
        if settings and not settings[0].fits(value):
            return f"{name} is {value:g}, but must be {settings[0].allowed}"
        if not settings and (fault := losses.setting_fault(name, value)):
            return fault
    kind_of: Any = field.annotation if field else float  # a setting of a loss or an objective is a number
    if kind_of is int and isinstance(value, float):
        return "a whole number is wanted (a range of them needs `int: true`)"
    adapter: TypeAdapter[Any] = TypeAdapter(
        Annotated[kind_of, *field.metadata] if field and field.metadata else kind_of
    )
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    if name == "tta":
        try:
            TrialConfig(backbone="any", resolution=16, epochs=1, tta=str(value))
        except ValidationError as error:
            return message(error)
    return ""


def _start_mistakes(space: Space, start: tuple[dict[str, Scalar], ...]) -> Iterator[str]:
    for number, point in enumerate(start):
        for name in point:
            if name not in space.domains:
                yield f"key 'start.{number}.{name}': not one of the parameters"
        try:
            space.starting(point)
        except ValueError as error:
            yield f"key 'start.{number}': {error}"


def _missing(optional: tuple[str, ...]) -> list[str]:
    """The optional backbones whose package of weights is not installed."""
    from cxrlt_ray.models import weights

    return [name for name in optional if weights.packaged(name) and not weights.installed(name)]


def _without(space: Space, backbones: set[str], missing: list[str], path: Path) -> Space:
    """The space without some of its backbones, and a note on each of `missing`, which are among them."""
    from cxrlt_ray.models.weights import OFFLINE

    if not backbones:
        return space
    left = []
    for domain in space.domains["backbone"]:
        kept = tuple(name for name in domain.ends() if name not in backbones)
        if kept:
            left.append(domain.model_copy(update={"choices": kept}) if domain.choices is not None else domain)
    if not left:
        raise UsageError(f"{path}: every backbone needs weights that are not installed: {OFFLINE}.")
    notes = tuple(f"Left out: {name}, whose weights are not installed ({OFFLINE})" for name in missing)
    return dataclasses.replace(space, domains={**space.domains, "backbone": tuple(left)}, notes=notes)
