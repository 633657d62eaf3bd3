"""An ensemble on disk: written with all that belongs to it, and loaded with its members as they were.

weights.csv            a row a member, a column a finding, and a column for the part that the finding chose itself
predictions.parquet    image_id, one float32 score per finding
predictions/val.parquet    the same of the validation images, cross-fitted: by weights chosen without their subjects
submission.csv         as the challenge wants it (and .zip)
ensemble.json          EnsembleRecord; written last: the rest is whole
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from pydantic import JsonValue

from cxrlt_ray.ensembling import submission
from cxrlt_ray.ensembling.apply import Ensemble, filled
from cxrlt_ray.ensembling.compare import Comparison, ScoredSplit, System, as_json
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.pool import Pool
from cxrlt_ray.ensembling.probabilities import CALIBRATION_FILE, THRESHOLDS_FILE
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation.calibration import Calibration
from cxrlt_ray.runs.contamination import Contamination
from cxrlt_ray.runs.ensemble_record import FILE, EnsembleRecord, MemberRecord, weights_fingerprint
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.runs.store import Run, read_trial
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.finite import finite

PREDICTIONS, CROSS_FITTED = "predictions.parquet", "predictions/val.parquet"
EXPLAINED = ("explain.json", "explain.png")  # of --explain


def write_ensemble(
    store: Store,
    run: Run,
    file: EnsembleFile,
    name: str,
    pool: Pool,
    system: System,
    comparison: Comparison,
    scored: ScoredSplit | None,
    zip: bool = False,
    calibration: Calibration | None = None,
    seen: Sequence[Contamination] = (),
) -> EnsembleRecord:
    """Leave the ensemble's files; each is whole or not there.

    scored: the split to submit, if it has images, its scores as they are given out. calibration: to keep. seen: what
    pretrained weights have seen of the images that judge the members.
    """
    findings, columns = run.task.findings, _columns(run)
    weights, own = system.weights[:, columns], system.fitted.own[:, columns]
    with store.place("weights.csv") as path:
        weights_table(pool, weights, own, findings).to_csv(path, index=False)
    if scored is not None:
        write_scores(store, run, scored, zip)
    write_cross_fitted(store, run, pool, system)
    record = EnsembleRecord.model_validate(
        {
            "name": name,
            "task": run.task,
            "run": run.store.absolute().uri,
            "fingerprint": run.record.fingerprint,
            "sizes": run.record.sizes_of_shards,
            "quality": run.record.quality,
            "track": run.record.track,
            "transductive": run.record.transductive,
            **as_applied(file, system),
            "members": [_member(pool, int(m), weights[m], findings) for m in np.flatnonzero(system.members)],
            "calibration": calibration,
            "seen": list(seen),
            "scores": finite(as_json(comparison)),
        }
    )
    record.write(store)
    return record


def files_of(scored: ScoredSplit | None, zip: bool = False) -> list[str]:
    """What `write_scores` leaves of a split to submit; nothing without images."""
    packed = [submission.ARCHIVE] if zip else []
    return [] if scored is None else [PREDICTIONS, submission.FILE, *packed]


def remove_former(store: Store, files: Collection[str]) -> None:
    """Remove what an earlier ensemble of the same name left and this one, with `files`, did not make: it is not its."""
    made = (CALIBRATION_FILE, THRESHOLDS_FILE, PREDICTIONS, submission.FILE, submission.ARCHIVE, *EXPLAINED)
    for name in made:
        if name not in files and store.exists(name):
            store.delete(name)


def write_scores(store: Store, run: Run, scored: ScoredSplit, zip: bool) -> None:
    """Leave the last system's scores as predictions and as a submission."""
    ids, scores = scored.images.table["image_id"].to_numpy(), scored.scores[-1]
    assert scores is not None
    scores = filled(scores)[:, _columns(run)]
    findings, split = run.task.findings, scored.images.table["split"].iloc[0]
    predictions = Predictions(ids, scores, findings, split, run.record.fingerprint, track=run.record.track)
    predictions.write(store, PREDICTIONS)
    table = submission.build(ids, scores, findings, run.task.id_column)
    submission.write(store, table, run.task, ids, zip=zip)


def write_cross_fitted(store: Store, run: Run, pool: Pool, system: System) -> None:
    """Leave the cross-fitted scores of the validation images, the mean over repeats."""
    scores = np.mean(system.crossed, axis=0)[:, _columns(run)]
    known = np.isfinite(scores).all(axis=1)
    if not known.any():
        return
    fingerprint, track = run.record.fingerprint, run.record.track
    predictions = Predictions(
        pool.image_id[known], scores[known].astype(np.float32), run.task.findings, "val", fingerprint, track=track
    )
    predictions.write(store, CROSS_FITTED)


def _columns(run: Run) -> list[int]:
    """Where the task's findings stand among those that the run's trials predict."""
    return [run.record.predicted.index(finding) for finding in run.task.findings]


def as_applied(file: EnsembleFile, system: System) -> dict[str, JsonValue]:
    """An ensembles/ file as it was applied: with the space, the rule and (`chosen`) the selector that were taken.

    chosen.guard is null where all findings are weighed alike.
    """
    method = system.fitted.method
    return {
        **file.model_dump(),
        "space": system.space,
        "aggregation": system.rule.how,
        "views": None if system.rule.views is None else dict(system.rule.views),
        "gating": system.rule.gating,
        "chosen": finite({"selector": method.selector, "guard": float(method.guard)}),
    }


def weights_table(pool: Pool, weights: np.ndarray, own: np.ndarray, findings: tuple[str, ...]) -> pd.DataFrame:
    """A row a member, heaviest first: what it is, val mAP, its mean weight, its weight for every finding, and the own.

    weights, own: [M, C]; own is the part that the finding chose for itself, the rest is what it leans on.
    """
    rows = [
        {
            "trial": trial.name,
            "backbone": trial.config.backbone,
            "resolution": trial.config.resolution,
            "loss": trial.config.loss,
            "augmentations": pool.passes(m),
            "val_map": round(trial.score, 4),
            "mean_weight": round(float(weight.mean()), 4),
            **dict(zip(findings, weight.round(4).tolist(), strict=True)),
            **dict(zip(own_columns(findings), own[m].round(4).tolist(), strict=True)),
        }
        for m, (trial, weight) in enumerate(zip(pool.trials, weights, strict=True))
        if weight.sum() > 0
    ]
    return pd.DataFrame(rows).sort_values("mean_weight", ascending=False, kind="stable")


def own_columns(findings: Sequence[str]) -> list[str]:
    """The columns of weights.csv that hold the part of its weights that a finding chose for itself."""
    return [f"{finding} (own)" for finding in findings]


def load(uri: str) -> Ensemble:
    """Read an ensemble, given by its ensemble.json or its directory, and find its members.

    Raises UsageError where there is none of this version, CxrltError where a member is missing or has changed.
    """
    file = uri if uri.endswith(".json") else f"{uri.rstrip('/')}/{FILE}"
    store, name = Store.holding(file)
    if not store.exists(name):
        raise UsageError(f"there is no ensemble in {uri}: give RUN/ensembles/NAME, as `ensemble` leaves it.")
    record = EnsembleRecord.parse(store.read_json(name), file)
    run = run_of(record, store.uri)
    trials = []
    for member in record.members:
        trial = read_trial(run / "trials" / member.trial)
        for checkpoint, fingerprint in member.checkpoints.items():
            if not trial.store.exists(checkpoint):
                raise CxrltError(f"{trial.store.uri}/{checkpoint}, a member of {uri}, is gone: select anew.")
            if weights_fingerprint(trial.store, checkpoint) != fingerprint:
                raise CxrltError(f"{trial.store.uri}/{checkpoint} changed since {uri} was made: select anew.")
        if not member.checkpoints:
            raise CxrltError(f"{trial.store.uri}, a member of {uri}, has no checkpoint left to score with.")
        trials.append(trial)
    return Ensemble(record, trials)


def _member(pool: Pool, m: int, weights: np.ndarray, findings: tuple[str, ...]) -> MemberRecord:
    trial = pool.trials[m]
    return MemberRecord(
        trial=trial.name,
        resolution=trial.config.resolution,
        tta=pool.augmented(m),
        checkpoints={name: weights_fingerprint(trial.store, name) for name in trial.checkpoints},
        weights=dict(zip(findings, weights.tolist(), strict=True)),
    )


def run_of(record: EnsembleRecord, folder: str) -> Store:
    """The run of the ensemble in `folder`, a directory or URI: two levels above, wherever the whole was moved.

    Else where it was when the ensemble was made. Raises CxrltError where it is at neither place.
    """
    above, recorded = _two_above(Store(folder or ".").absolute().uri), Store(record.run)
    found = above is not None and above.exists("run.json")
    if above is not None and found and above.read_json("run.json").get("fingerprint", "") == record.fingerprint:
        return above
    if recorded.exists("run.json"):
        return recorded
    raise CxrltError(f"the run of this ensemble is not at {recorded.uri} any more: its members cannot be loaded.")


def _two_above(uri: str) -> Store | None:
    """The directory two levels above that of an absolute path or URI; None where there is none, as above a bucket."""
    scheme, mark, path = uri.rpartition("://")
    names = path.rstrip("/").split("/")[:-2]
    return Store(f"{scheme}{mark}{'/'.join(names)}") if any(names) else None
