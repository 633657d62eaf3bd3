"""`python -m cxrlt_ray.ensemble --from a.csv b.parquet --targets labels.csv`: predictions from anywhere, stacked.

Left in OUT/: weights.csv (a row a member, a column a finding), report.json, validation.csv and, with --apply,
predictions.csv: the ensemble's scores, an image a row.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from cxrlt_ray.data.tasks import rarity
from cxrlt_ray.ensemble import applied, check_costs, compare, judge, kept, show, show_curve, tell_why
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile, load_ensemble
from cxrlt_ray.ensembling.members import read_apply, read_members, read_npz
from cxrlt_ray.ensembling.pool import Pool, read_costs
from cxrlt_ray.errors import UsageError
from cxrlt_ray.selection import takes_costs
from cxrlt_ray.selection.honest import side_by_side
from cxrlt_ray.storage import Store


def stack(
    select: str,
    tables: list[str],
    targets: str | None,
    groups: str | None,
    apply: list[str] | None,
    findings: list[str] | None,
    id_column: str | None,
    drop_missing: bool,
    out: str,
    rounds: int,
    seed: int,
    costs: str | None = None,
    explain: bool = False,
) -> None:
    """Choose and weigh members given as tables, say how good that is, and apply it. Arguments: see ensemble.main."""
    name, file = load_ensemble(select)
    _check_file(file)
    alone = len(tables) == 1 and tables[0].endswith(".npz")
    if alone and (targets or groups or findings or id_column or drop_missing):
        raise UsageError(f"{tables[0]} holds labels and all: of the options for tables it takes --apply only.")
    if not alone and not targets:
        raise UsageError("--targets is missing: the table of labels that goes with the predictions of --from.")
    if alone:
        members = read_npz(tables[0])
    else:
        assert targets is not None
        members = read_members(
            tables, targets, groups=groups, id_column=id_column, findings=findings, drop_missing=drop_missing
        )
    scored = read_apply(apply, members, id_column=id_column) if apply else None  # a fault here is told before the work
    for note in [*members.notes, *(scored[2] if scored else [])]:
        print(f"Note: {note}")
    subjects = len(np.unique(members.groups))
    print(
        f"{len(members.names)} members, {len(members.image_id):,} images of {subjects:,} subjects, "
        f"{len(members.findings)} findings"
    )
    predictions = side_by_side(members.predictions)
    pool = Pool(members.names, members.image_id, predictions, members.targets, members.groups, [])
    weighs = takes_costs(file.selector)
    check_costs(costs, file, explain)
    if costs or weighs:
        pool = replace(pool, costs=read_costs(costs, pool.names) if costs else np.ones(len(pool.names)))
    rows = compare(file, name, pool, seed)
    if weighs:
        show_curve(pool, file, rows[-1].values, costs or "members", rounds, seed)
    report = judge(members.findings, rarity(members.targets), pool, rows, {}, rounds, seed)
    show(report, name, swept=False)
    store, weights = Store(out), rows[-1].weights
    if explain:
        tell_why(members.findings, pool, rows[-1], costs or "members", seed, store)
    table = pd.DataFrame(weights.round(6), pd.Index(members.names, name="member"), members.findings)
    store.write("weights.csv", table.to_csv().encode())
    store.write("validation.csv", _csv(members.image_id, rows[-1].optimistic, members.findings))
    if scored:
        each = scored[0]  # an image a study
        combined = applied(rows[-1].space, rows[-1].rule, scored[1], predictions, weights, each, each)
        store.write("predictions.csv", _csv(scored[0], combined, members.findings))
    about = {"name": name, **kept(file, rows[-1])}
    store.write_json("report.json", {**about, "members": members.names, "scores": report})
    left = "weights.csv, validation.csv, report.json" + (", predictions.csv" if scored else "")
    print(f"Left in {store.absolute().uri}: {left}")


def _check_file(file: EnsembleFile) -> None:
    """Raise UsageError for what an ensembles/ file wants of images or trials that tables of predictions do not know."""
    if file.joined() != "none":
        key = "aggregation" if file.aggregation else "views"
        raise UsageError(f"key '{key}' needs each image's study and view, which a run has: it does not go with --from.")
    if file.tta == "on":
        raise UsageError("tta: on needs a run's trials: it does not go with --from, whose scores are as they are.")


def _csv(image_id: np.ndarray, scores: np.ndarray, findings: list[str]) -> bytes:
    return pd.DataFrame(scores.astype(np.float32), pd.Index(image_id, name="image_id"), findings).to_csv().encode()
