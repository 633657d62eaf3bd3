"""Predictions of any origin, stacked: what `ensemble --from` starts from, and what it leaves.

OUT/weights.csv      a row a member, a column a finding, and a column for the part that the finding chose itself
    validation.csv   the ensemble's scores of the labelled images
    predictions.csv  with --apply: its scores of other images, an image a row
    report.json      the ensembles/ file as it was applied, the members, the comparison, the calibration
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cxrlt_ray.data.score_scale import rounded
from cxrlt_ray.ensembling.apply import applied
from cxrlt_ray.ensembling.compare import Comparison, System, as_json
from cxrlt_ray.ensembling.costs import read_costs
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.members import Members, read_apply, read_members, read_npz
from cxrlt_ray.ensembling.pool import Pool
from cxrlt_ray.ensembling.probabilities import Probabilities
from cxrlt_ray.ensembling.request import EnsembleRequest
from cxrlt_ray.ensembling.stored import as_applied, own_columns
from cxrlt_ray.errors import UsageError
from cxrlt_ray.selection import takes_costs
from cxrlt_ray.selection.honest import side_by_side
from cxrlt_ray.storage import Store


@dataclass(frozen=True)
class Tables:
    """What the files hold: the members, and of --apply the ids [K] and predictions [M, K, C] of images to score.

    notes: what a user should know of how they were matched.
    """

    members: Members
    apply_ids: np.ndarray | None
    apply_predictions: np.ndarray | None
    notes: list[str]


def check_file(file: EnsembleFile) -> None:
    """Raise UsageError for keys of an ensembles/ file that need images or trials, which tables do not know."""
    if file.used_aggregation() != "none":
        key = "aggregation" if file.aggregation else "views"
        raise UsageError(f"key '{key}' needs each image's study and view, which a run has: it does not go with --from.")
    if file.best_of_each is not None:
        raise UsageError("key 'best_of_each' is a parameter of a run's trials: it does not go with --from.")
    if file.tta == "on":
        raise UsageError("tta: on needs a run's trials: it does not go with --from, whose scores are as they are.")


def read(request: EnsembleRequest) -> Tables:
    """The members and images of a request's files; every fault of them is raised before any work."""
    assert request.tables is not None
    if request.is_npz:
        members = read_npz(request.tables[0], request.scores)
    else:
        assert request.targets is not None
        members = read_members(
            request.tables,
            request.targets,
            groups=request.groups,
            id_column=request.id_column,
            findings=request.findings,
            drop_missing=request.drop_missing,
            scales=request.scores,
        )
    if not request.apply:
        return Tables(members, None, None, members.notes)
    ids, predictions, notes = read_apply(request.apply, members, id_column=request.id_column)
    return Tables(members, ids, predictions, [*members.notes, *notes])


def pool_of_tables(members: Members, file: EnsembleFile, costs: str | None) -> Pool:
    """The members to choose among; without a file of costs each costs 1, where the selector weighs costs."""
    pool = Pool(
        names=members.names,
        image_id=members.image_id,
        predictions=side_by_side(members.predictions),
        targets=members.targets,
        groups=members.groups,
        trials=[],
        findings=tuple(members.findings),
    )
    if costs:
        return replace(pool, costs=read_costs(costs, pool.names))
    return replace(pool, costs=np.ones(len(pool.names))) if takes_costs(file.selector) else pool


def write(
    store: Store,
    tables: Tables,
    file: EnsembleFile,
    name: str,
    pool: Pool,
    system: System,
    comparison: Comparison,
    made: Probabilities,
) -> list[str]:
    """Leave the ensemble's files, report.json last, and return their names; scores are left as `made` gives them."""
    members, weights = tables.members, system.weights
    columns = [*members.findings, *own_columns(members.findings)]
    both = np.hstack([weights, system.fitted.own]).round(6)
    table = pd.DataFrame(both, pd.Index(members.names, name="member"), columns)
    store.write("weights.csv", table.to_csv().encode())
    store.write("validation.csv", _csv(members.image_id, made.apply(system.optimistic), members.findings))
    files = ["weights.csv", "validation.csv", "report.json"]
    if tables.apply_ids is not None and tables.apply_predictions is not None:
        ids = tables.apply_ids  # an image a study
        scores = applied(system.space, system.rule, tables.apply_predictions, pool.predictions, weights, ids, ids)
        store.write("predictions.csv", _csv(ids, made.apply(scores), members.findings))
        files.append("predictions.csv")
    report = {"name": name, **as_applied(file, system), "members": members.names, "scores": as_json(comparison)}
    if made.calibration is not None:
        report["calibration"] = made.calibration.model_dump(mode="json")
    store.write_json("report.json", report)
    return files


def _csv(image_id: np.ndarray, scores: np.ndarray, findings: list[str]) -> bytes:
    return pd.DataFrame(rounded(scores), pd.Index(image_id, name="image_id"), findings).to_csv().encode()
