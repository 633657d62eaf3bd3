"""What members cost an image, and the ensembles among which selector `frontier` chooses: score against cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.data.readers.columns import reason_of
from cxrlt_ray.data.table_file import read_table_file
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.names import nearest
from cxrlt_ray.ensembling.pool import Pool
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample
from cxrlt_ray.selection import curve, takes_costs
from cxrlt_ray.selection.honest import combine
from cxrlt_ray.storage import Store


@dataclass(frozen=True)
class FrontierPoint:
    """An ensemble on the frontier: its cost an image, its mAP where it was chosen, its members' names."""

    cost: float
    score: Estimate
    members: tuple[str, ...]


def check_costs(costs: str | None, file: EnsembleFile, explain: bool) -> None:
    """Raise UsageError for --costs where nothing would come of them."""
    if costs and not takes_costs(file.selector) and not explain:
        raise UsageError(f"--costs: selector {file.selector} does not weigh costs; selector frontier and --explain do.")


def read_costs(path: str, names: list[str]) -> np.ndarray:
    """The members' costs [M] in a CSV of two columns, member and cost. Raises CxrltError naming what is wrong."""
    store, name = Store.holding(path)
    first = read_table_file(store, name).table.column_names[0]
    try:
        table = read_table_file(store, name, text=[first]).table.to_pandas(ignore_metadata=True).iloc[:, :2]
        costs = pd.to_numeric(table.set_index(table[first].str.strip()).iloc[:, 1], errors="coerce").astype(float)
    except (ValueError, IndexError) as error:
        raise CxrltError(f"{path} is no table of members and their costs: {reason_of(error)}.") from None
    held = [str(member) for member in costs.index]
    if missing := [member for member in names if member not in costs.index]:
        near = f" (near: '{match}')" if (match := nearest(missing[0], held)) else ""
        raise CxrltError(f"{path} has no cost of {missing[0]}{near}: give each of {', '.join(names)} a row.")
    costs = costs[~costs.index.duplicated()].loc[names]
    if wrong := [member for member, cost in costs.items() if not 0 < cost < np.inf]:
        raise CxrltError(f"{path}: the cost of {wrong[0]} is no number above 0: give each member its cost.")
    return costs.to_numpy(float)


def frontier(pool: Pool, file: EnsembleFile, values: np.ndarray, rounds: int, seed: int) -> list[FrontierPoint]:
    """The ensembles of `values` [M, N, C] that score best at their cost; intervals bootstrapped by subject."""
    options = {key: value for key, value in file.settings.items() if key != "budget"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points = curve(values, pool.targets, pool.groups, pool.costs, **options)
    systems = [combine(values, point.weights) for point in points]
    draws = metrics.bootstrap_map(pool.targets, systems, pool.groups, rounds=rounds, seed=seed)
    sample = Sample.of(pool.targets, pool.groups)
    return [
        FrontierPoint(point.cost, Estimate.of_score(point.score, of_point, sample), _names(pool, point.members))
        for point, of_point in zip(points, draws, strict=True)
    ]


def _names(pool: Pool, members: Iterable[int]) -> tuple[str, ...]:
    return tuple(pool.names[m] for m in members)
