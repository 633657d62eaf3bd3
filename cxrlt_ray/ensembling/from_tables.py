"""Predictions of any origin, stacked: what `ensemble --from` starts from, and what it leaves.

OUT/weights.csv      a row a member, a column a finding, and a column for the part that the finding chose itself
    validation.csv   the ensemble's scores of the labelled images, by the weights that were chosen on them: optimistic
    predictions.csv  with --apply: its scores of other images, an image a row
    report.json      the ensembles/ file as it was applied, the members, the comparison, the calibration, and the files
                     that belong to it: the next ensemble in OUT removes those that it does not make
"""

from __future__ import annotations

from collections.abc import Sequence
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
from cxrlt_ray.ensembling.probabilities import CALIBRATION_FILE, THRESHOLDS_FILE, Probabilities
from cxrlt_ray.ensembling.request import EnsembleRequest
from cxrlt_ray.ensembling.stored import EXPLAINED, as_applied, own_columns
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.selection import takes_costs
from cxrlt_ray.selection.honest import side_by_side
from cxrlt_ray.storage import Store

FILES = ("weights.csv", "validation.csv", "report.json")
APPLIED = "predictions.csv"


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


def check_out(request: EnsembleRequest) -> None:
    """Raise UsageError where a file to be left in `out` is one that is read: it would be lost."""
    given = [*(request.tables or ()), *(request.apply or ()), request.targets, request.groups, request.costs]
    read = {_place(path) for path in [*given, request.critical] if path}
    files = [*FILES, *([APPLIED] if request.apply else []), *(EXPLAINED if request.explain else [])]
    files += [*([CALIBRATION_FILE] if request.calibrate else []), *([THRESHOLDS_FILE] if request.aims else [])]
    for name in files:
        if _place(f"{request.out}/{name}") in read:
            raise UsageError(f"--out {request.out}: its {name} would take the place of the one that is read.")


def _place(path: str) -> str:
    store, name = Store.holding(path)
    return f"{store.absolute().uri}/{name}"


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
    more: Sequence[str] = (),
) -> list[str]:
    """Leave the ensemble's files, report.json last, and return their names; scores are left as `made` gives them.

    more: files of this ensemble that are there already.
    """
    former = _former(store)
    members, weights = tables.members, system.weights
    columns = [*members.findings, *own_columns(members.findings)]
    both = np.hstack([weights, system.fitted.own]).round(6)
    table = pd.DataFrame(both, pd.Index(members.names, name="member"), columns)
    store.write("weights.csv", table.to_csv().encode())
    store.write("validation.csv", _csv(members.image_id, made.apply(system.optimistic), members.findings))
    files = list(FILES)
    if tables.apply_ids is not None and tables.apply_predictions is not None:
        ids = tables.apply_ids  # an image a study
        scores = applied(system.space, system.rule, tables.apply_predictions, pool.predictions, weights, ids, ids)
        store.write(APPLIED, _csv(ids, made.apply(scores), members.findings))
        files.append(APPLIED)
    report = {"name": name, **as_applied(file, system), "members": members.names, "scores": as_json(comparison)}
    report["files"] = kept = [*files, *more]
    if made.calibration is not None:
        report["calibration"] = made.calibration.model_dump(mode="json")
    for other in (other for other in former if other not in kept and store.exists(other)):
        store.delete(other)
    store.write_json("report.json", report)
    return files


def _former(store: Store) -> list[str]:
    """The files of the ensemble that was left here before, as its report names them."""
    try:
        names = store.read_json("report.json")["files"] if store.exists("report.json") else []
    except (CxrltError, KeyError, TypeError):  # somebody else's
        return []
    return [name for name in (*FILES, APPLIED, *EXPLAINED, CALIBRATION_FILE, THRESHOLDS_FILE) if name in names]


def _csv(image_id: np.ndarray, scores: np.ndarray, findings: list[str]) -> bytes:
    return pd.DataFrame(rounded(scores), pd.Index(image_id, name="image_id"), findings).to_csv().encode()
