"""The search as Optuna's own tools see it: an in-memory study of a run's trials, and how much each parameter matters.

The study's database is not opened: a sweep may be writing it, and a page must not change a run. Distributions are those
that the trials show: a number's range, on a log scale where the space says so or the range is wide, else a choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.records import FINISHED, Value
from cxrlt_ray.runs.store import Run, Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FEWEST = 8  # finished trials, below which importances are noise
MOST_FOR_FANOVA = 200  # finished trials above which PED-ANOVA, whose time hardly grows, takes its place
CONDITION = "@"  # in Optuna's name of a parameter: before it the parameter, after it the number of its domain
WIDE = 30  # times the least value that a number of a log scale reaches
SEED = 0


def importances(run: Run, trials: Sequence[Trial]) -> tuple[dict[str, float], str]:
    """The share of each parameter in the variance of the score, most first, and the method or why there is none.

    fANOVA (Hutter, Hoos and Leyton-Brown 2014) of a random forest; of many trials PED-ANOVA (Watanabe, Bansal and
    Hutter 2023). Parameters that not every trial has, and those with one value, are left out.
    """
    finished = [trial for trial in trials if trial.state == FINISHED and trial.score == trial.score]
    if len(finished) < FEWEST:
        return {}, f"{counted(len(finished), 'finished trial')}; importances take {FEWEST} or more."
    spread = distributions(run, finished)
    shared = [name for name in spread if all(name in settings(trial) for trial in finished)]
    if not shared:
        return {}, "No parameter is searched in every trial."
    if len({trial.score for trial in finished}) == 1:
        return {}, "All trials have the same score."
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    few = len(finished) <= MOST_FOR_FANOVA
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both evaluators are experimental in some versions
        study = optuna.create_study(direction="maximize" if finished[0].record.metric.mode == "max" else "minimize")
        for trial in finished:
            params: dict[str, Any] = {name: settings(trial)[name] for name in shared}
            dims = {name: spread[name] for name in shared}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=dims, value=trial.score))
        fanova = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
        evaluator = fanova if few else optuna.importance.PedAnovaImportanceEvaluator()
        values = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(values), "fANOVA" if few else "PED-ANOVA"


def settings(trial: Trial) -> dict[str, Value]:
    """The searched settings of a trial by parameter, whichever of its domains they are of (search/space.py)."""
    return {name.partition(CONDITION)[0]: value for name, value in trial.record.params.items()}


def distributions(run: Run, trials: Sequence[Trial]) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each parameter that has two values or more among the trials, by name."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    logarithmic = _logarithmic(run)
    spread: dict[str, BaseDistribution] = {}
    for name in dict.fromkeys(name for trial in trials for name in settings(trial)):
        values = [settings(trial)[name] for trial in trials if name in settings(trial)]
        distinct = list(dict.fromkeys(values))
        numbers = [value for value in distinct if isinstance(value, float)]
        if len(distinct) < 2:
            continue
        if len(numbers) == len(distinct):
            low, high = min(numbers), max(numbers)
            log = low > 0 and (name in logarithmic or high / low > WIDE)
            spread[name] = FloatDistribution(low, high, log=log)
        else:
            spread[name] = CategoricalDistribution(distinct)
    return spread


def _logarithmic(run: Run) -> set[str]:
    """The parameters that the run's space searches on a log scale; none where it cannot be read."""
    try:
        content = yaml.safe_load(run.store.read("space.yaml")) if run.store.exists("space.yaml") else {}
    except (CxrltError, yaml.YAMLError):
        return set()
    parameters = content.get("parameters") if isinstance(content, dict) else None
    return {name for name, domain in (parameters or {}).items() if "'log': True" in str(domain)}
