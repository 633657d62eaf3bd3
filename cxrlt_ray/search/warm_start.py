"""Start points from earlier runs: the settings of their best trials, as far as this search space knows them.

Settings that were good on one cohort are rarely bad on another; what the search finds after them is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.metric import Metric
from cxrlt_ray.runs.records import FINISHED
from cxrlt_ray.runs.store import Trial, best_first, load_run
from cxrlt_ray.runs.trial_config import Scalar

if TYPE_CHECKING:
    from cxrlt_ray.search.space import Space

POINTS = 3  # of an earlier run
Point = dict[str, Scalar]


def warm_points(storage: str, runs: Sequence[str], space: Space, metric: Metric) -> list[Point]:
    """Start points by the best finished trials of earlier runs of the storage, by Optuna's names; prints a line a run.

    Raises UsageError for a run that is not there, that is judged by another metric, or none of whose settings are
    allowed here.
    """
    points: list[Point] = []
    for name in runs:
        points += [point for point in _points_of_run(storage, name, space, metric) if point not in points]
    return points


def _points_of_run(storage: str, name: str, space: Space, metric: Metric) -> list[Point]:
    run = load_run(storage, name)
    trials = best_first(trial for trial in run.trials() if trial.state == FINISHED and trial.score == trial.score)
    if not trials:
        raise UsageError(f"--warm-from {name}: no trial of this run is finished.")
    if trials[0].record.metric != metric:
        title = trials[0].record.metric.title
        raise UsageError(f"--warm-from {name}: its trials are judged by {title}, those of this run by {metric.title}.")
    points: list[Point] = []
    for trial in trials:
        if len(points) < POINTS and (point := point_of(trial, space)) and point not in points:
            points.append(point)
    if not points:
        raise UsageError(f"--warm-from {name}: search space {space.name} allows the settings of none of its trials.")
    print(f"Begins with the settings of the best {len(points)} trials of {name} that space {space.name} allows.")
    return points


def point_of(trial: Trial, space: Space) -> Point:
    """A trial's settings as a start point of `space`; empty where a value is not allowed there."""
    config = trial.config
    settings: Point = {**config.model_dump(exclude={"stages", "loss_settings", "objective_settings"})}
    settings |= {**config.loss_settings, **config.objective_settings}
    settings |= {key.partition("@")[0]: value for key, value in trial.record.params.items()}
    try:
        return space.starting({name: settings[name] for name in space.domains if name in settings})
    except ValueError:
        return {}
