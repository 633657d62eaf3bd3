"""The keys of an ensembles/ file: how members are selected, and what is done to their predictions before."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cxrlt_ray.config import Config, find, read_yaml, validate
from cxrlt_ray.data.manifest import VIEWS
from cxrlt_ray.data.tasks import normal_among
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.selection import SELECTORS, SPACES_OF, takes_costs
from cxrlt_ray.selection import settings as settings_of
from cxrlt_ray.selection.method import AUTO, Lean, Method
from cxrlt_ray.selection.views import LEARNED, StudyRule, options

CHOICES = ("mean", "best", "greedy_bagged")  # all in one space
WHOLE = ("mean", "rank_mean", "best", "greedy_global", "greedy_lift")  # weigh all findings alike: none leans on others
ON, OFF = "on", "off"  # of `tta`


class EnsembleFile(Config):
    """The keys of an ensembles/ file; see selection.honest.Method for the selector's, views.StudyRule for views.

    aggregation: how the images of a study are joined before members are weighed; auto: chosen by cross-fitting, each
    image by itself unless another is better by more than one standard error. views: weights of images by their view,
    or learned, from views.GRID. Without `aggregation` it is the mean where views are stated, auto where learned, else
    none. gating: how strongly each member's Normal gates its other findings (selection/gating.py), 0 to 1; auto: chosen
    by cross-fitting. tta: whether members score under test-time augmentation (tta.under_tta). best_of_each: a parameter
    of trials; of those with the same value of it only the best is chosen among (pool.best_of_each).
    """

    selector: str
    settings: dict[str, int | float | str | bool] = Field(default={})
    fallback: list[str] = Field(default=[])  # taken instead where better by more than one standard error
    choices: list[str] = Field(default=list(CHOICES), min_length=1)  # of selector auto, the simplest first
    space: Literal["probability", "logit", "rank"] | None = None  # without it, the selector's own
    aggregation: Literal["none", "mean", "max", "noisy_or", "auto"] | None = None
    views: dict[str, float] | Literal["learned"] | None = None
    gating: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = 0.0
    tta: Literal["auto", "on", "off"] = "auto"
    guard: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.0
    lean: Lean = "global"
    blend: list[str] = Field(default=[])  # selectors whose weights are averaged with the selector's
    members: Annotated[int, Field(ge=1)] | None = None
    best_of_each: str | None = None
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Annotated[int, Field(ge=1)] = 1

    @field_validator("best_of_each")
    @classmethod
    def _is_of_trials(cls, parameter: str | None) -> str | None:
        if parameter is not None and parameter not in TrialConfig.model_fields:
            raise ValueError("no parameter of trials is called so; resolution and backbone are")
        return parameter

    @field_validator("tta", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        """YAML 1.1 takes on and off for true and false."""
        return {True: ON, False: OFF}[value] if isinstance(value, bool) else value

    @field_validator("views", mode="before")
    @classmethod
    def _check_weights(cls, views: Any) -> Any:
        if views is None or views == LEARNED:
            return views
        if not isinstance(views, dict):
            raise ValueError(f"it is neither weights of {', '.join(VIEWS)} nor '{LEARNED}'")
        if unknown := [str(view) for view in views if view not in VIEWS]:
            instead = f"; '{LEARNED}' stands in the weights' place, not beside them" if LEARNED in unknown else ""
            raise ValueError(f"there is no view '{unknown[0]}', there are {', '.join(VIEWS)}{instead}")
        for view, weight in views.items():
            number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
            if not number or not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of {view} must be a number from 0 up")
        if views and not any(views.values()):
            raise ValueError("all weights are 0: no image would have a voice")
        return views

    def methods(self) -> list[Method]:
        """What selection.honest chooses among, in order of preference."""
        if self.selector == AUTO:
            whole = [Method(name, members=self.members) for name in self.choices]
            return [m if m.selector in WHOLE else replace(m, guard=self.guard, lean=self.lean) for m in whole]
        fallbacks = [Method(name, {}, 0.0, self.members) for name in self.fallback]
        chosen = Method(self.selector, dict(self.settings), self.guard, self.members, self.lean, tuple(self.blend))
        return [chosen, *fallbacks]

    def margin(self) -> float:
        """By how many standard errors a method must be better than those before it: of auto's, by any."""
        return 0.0 if self.selector == AUTO else 1.0

    def used_aggregation(self) -> str:
        """The key `aggregation`, or what follows from `views` without it."""
        if self.aggregation is not None:
            return self.aggregation
        return "none" if self.views is None else AUTO if self.views == LEARNED else "mean"

    def rules(self, findings: Sequence[str] = ()) -> list[StudyRule]:
        """How the images of a study may be joined and `findings` gated, in order of preference.

        Raises UsageError where they are to be gated at a given strength and Normal is not among them.
        """
        normal = normal_among(findings)
        if normal is None and self.gating not in (0, AUTO):
            raise UsageError(f"gating: {self.gating:g} needs a finding Normal, by which the others are gated.")
        return options(self.used_aggregation(), self.views, self.gating, normal)

    def used_space(self) -> str:
        """The space in which predictions are combined: the key `space`, or the selector's own."""
        return self.space or SPACES_OF.get(self.selector, "probability")


def load_ensemble(name: str) -> tuple[str, EnsembleFile]:
    """The name and content of an ensembles/ file; a selector's own name will do. Raises UsageError naming file, key."""
    try:
        path = find("ensembles", name)
    except UsageError:
        if name in SELECTORS or name == AUTO:
            return name, EnsembleFile(selector=name)
        raise
    content = validate(EnsembleFile, read_yaml(path), path)
    _check_selectors(path, content)
    _check_views(path, content)
    known = settings_of(content.selector) if content.selector in SELECTORS else {}
    if unknown := set(content.settings) - set(known):
        raise UsageError(
            f"{path}: unknown key 'settings.{sorted(unknown)[0]}'; selector {content.selector} has "
            f"{', '.join(known) or 'none'}."
        )
    return path.stem, content


def _check_selectors(path: Path, content: EnsembleFile) -> None:
    others = [(key, name) for key in ("fallback", "choices", "blend") for name in getattr(content, key)]
    for key, name in [("selector", content.selector), *others]:
        if name not in SELECTORS and not (key == "selector" and name == AUTO):
            raise UsageError(
                f"{path}: key '{key}': given '{name}': there is no such selector; there are {', '.join(SELECTORS)}"
                + (f" and {AUTO}." if key == "selector" else ".")
            )
    if content.selector == AUTO and content.blend:
        raise UsageError(f"{path}: key 'blend' means nothing to selector {AUTO}, which takes 'choices'.")
    for name in content.blend:
        if SPACES_OF[name] != SPACES_OF[content.selector]:
            raise UsageError(
                f"{path}: key 'blend': given '{name}', whose weights are for {SPACES_OF[name]}; those of selector "
                f"{content.selector} are for {SPACES_OF[content.selector]}."
            )
    for key in ("fallback", "choices"):
        for name in getattr(content, key):
            if content.space is None and SPACES_OF[name] != content.used_space():
                raise UsageError(
                    f"{path}: key '{key}': given '{name}', which takes predictions in the {SPACES_OF[name]} space; one "
                    f"ensemble has one, here {content.used_space()}: leave it out, or state 'space' for all."
                )
    _check_budget(path, content)
    unused = "fallback" if content.selector == AUTO else "choices"
    if unused in content.model_fields_set:
        uses = "which takes 'choices'" if content.selector == AUTO else f"only to selector {AUTO}; 'fallback' does"
        raise UsageError(f"{path}: key '{unused}' means nothing to selector {content.selector}, {uses}.")


def _check_budget(path: Path, content: EnsembleFile) -> None:
    """Raise UsageError for a budget beside a key that gives weight to members whatever they cost."""
    if not takes_costs(content.selector) or "budget" not in content.settings:
        return
    others = {"blend": content.blend, "fallback": content.fallback, "lean": content.lean != "global"}
    if beyond := [key for key, given in others.items() if given]:
        raise UsageError(
            f"{path}: key '{beyond[0]}' would bring members whatever they cost, beside settings.budget: leave one out."
        )


def _check_views(path: Path, content: EnsembleFile) -> None:
    if content.views is not None and content.aggregation == "none":
        raise UsageError(f"{path}: key 'views' means nothing to aggregation none, which joins no images of a study.")
    if content.views == LEARNED and content.aggregation == "max":
        raise UsageError(
            f"{path}: views '{LEARNED}' means nothing to aggregation max, which takes the largest whatever the "
            "weights: give weight 0 to views that are to have no voice, or take mean."
        )
