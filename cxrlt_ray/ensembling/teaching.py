"""A teacher at work: its record, its scores of images (kept, so that other values need no second pass), its labels."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd

from cxrlt_ray.data.fingerprints import HashedSet
from cxrlt_ray.data.soft_targets import FILE, SoftTargets, read_from
from cxrlt_ray.data.teacher import Teacher
from cxrlt_ray.ensembling import pseudo_labels as labels
from cxrlt_ray.ensembling.pool import Say
from cxrlt_ray.ensembling.pseudo_labels import CohortReport, PseudoReport
from cxrlt_ray.ensembling.pseudo_request import PseudoRequest
from cxrlt_ray.ensembling.teacher import EnsembleTeacher, Validation
from cxrlt_ray.ensembling.unlabelled import TEST, Unlabelled
from cxrlt_ray.evaluation import soft_labels as calibration
from cxrlt_ray.storage import Store


def record_of(request: PseudoRequest, teacher: EnsembleTeacher, images: Unlabelled, validation: Validation) -> Teacher:
    """Who teaches what, for the file's metadata; its key is of all that the pseudo-labels depend on."""
    name, salt = teacher.ensemble.record.name or "ensemble", teacher.run.record.fingerprint
    judges = HashedSet.of(np.unique(validation.subjects.astype(str)), salt) if request.weights == "chosen" else None
    record = Teacher.model_validate(
        {
            "key": "",
            "run": teacher.run.store.absolute().uri,
            "fingerprint": salt,
            "ensemble": name,
            "weights": request.weights,
            "values": request.values,
            "keep": request.keep if request.values == "hard" else None,
            "findings": teacher.findings,
            "folds": teacher.folds,
            "members": teacher.members,
            "trained_on": {fold: HashedSet.of(some, salt) for fold, some in teacher.seen().items()},
            "chosen_on": judges,
            "calibrated_on": None if request.values == "raw" else "train" if teacher.folds else "val",
            "images": {cohort: int(rows.sum()) for cohort, rows in images.cohorts.items()},
            "transductive": request.on == TEST or teacher.run.record.transductive,
            "earlier": read_from(teacher.run.store, FILE).teacher if teacher.run.record.soft_targets else None,
        }
    )
    content = json.dumps([record.model_dump(mode="json"), images.manifest.fingerprint, teacher.way], sort_keys=True)
    key = f"{teacher.run.name}-{name}-{request.values}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return record.model_copy(update={"key": key})


def scores_of(
    teacher: EnsembleTeacher, images: Unlabelled, store: Store, max_bad: float, address: str | None, say: Say
) -> np.ndarray:
    """The teachers' raw scores float32 [K, N, C], nan in quarantine; kept in `store`.

    Images that the run's shards do not hold are prepared beside them. A killed pass goes on with the shard it was at.
    """
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.prepare import prepare

    record, members = teacher.ensemble.record, [member.model_dump() for member in teacher.members]
    kind = [record.fingerprint, teacher.way, members, images.manifest.fingerprint]
    key = hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:12]
    shape, name = (teacher.teachers, len(images.targets), len(teacher.findings)), f"scores-{key}.npy"
    if store.exists(name):
        with store.fetched(name) as path:
            kept: np.ndarray = np.load(path, allow_pickle=False)
        if kept.shape == shape:
            say("The teacher's scores of these images are there already")
            return kept
    start_ray(address)
    scores = np.full(shape, np.nan, np.float32)
    storage = teacher.run.store.absolute().uri.rpartition("/")[0]
    readable = images.manifest.table["image_id"].isin(teacher.run.shards()[0].index().index).to_numpy()
    for rows, new in ((images.prepared & readable, False), (~images.prepared, True)):
        if not rows.any():
            continue
        part, shards = images.at(rows).manifest, teacher.run.shards()
        if new:
            shards = prepare(part, storage, record.sizes, max_bad, record.quality)
        work = store / f"scoring-{key}-{'new' if new else 'own'}"
        say(f"Scoring {len(part.table):,} images with {len(teacher.members)} members x {teacher.teachers} fold(s)")
        scores[:, rows] = teacher.score(work, shards, part.table)
        work.remove()
    with store.place(name) as path, open(path, "wb") as file:
        np.save(file, scores)
    return scores


def labelled_by(
    request: PseudoRequest,
    teacher: EnsembleTeacher,
    images: Unlabelled,
    scores: np.ndarray,
    validation: Validation,
    record: Teacher,
) -> tuple[SoftTargets, PseudoReport]:
    """The pseudo-labels of raw scores [K, N, C], and what labels tell of them."""
    shares, maps = teacher.prevalence(), labels.maps_of(validation, teacher.folds)
    filled = labels.pseudo_labels(scores, images.targets, images.cohorts, record.values, maps, shares, request.keep)
    ids = pd.Index(images.manifest.table["image_id"].astype(str), name="image_id")
    tables = [pd.DataFrame(part.astype(np.float32), ids, list(teacher.findings)) for part in filled]
    tables = [table[table.notna().any(axis=1)] for table in tables]
    mean = pd.concat(tables).groupby(level=0, sort=False).mean() if teacher.folds else tables[0]
    soft = SoftTargets(mean, record.provenance, (), record, tuple(tables) if teacher.folds else ())
    share, raw = shares.mean(axis=0), scores.mean(axis=0)
    calibrated = np.mean([own(part) for own, part in zip(maps, scores, strict=True)], axis=0)
    own = labels.calibrated_validation(validation, maps, request.seed)
    judged = [(labels.VALIDATION, validation.targets, validation.scores, own, validation.subjects, None)]
    for name, rows in images.cohorts.items():
        groups = images.manifest.table["subject_id"].to_numpy()[rows]
        given = mean.reindex(ids[rows]).to_numpy(float)
        judged.append((name, images.targets[rows], raw[rows], calibrated[rows], groups, given))
    parts = []
    for name, targets, plain, mapped, groups, given in judged:
        known = np.where(targets >= 0, plain, np.nan)
        lines = labels.lines_of(
            teacher.findings,
            targets,
            plain,
            mapped,
            calibration.class_aware(known, share, request.keep),
            groups,
            request.rounds,
            request.seed,
            given,
        )
        trained = name != labels.VALIDATION and bool(record.saw(np.unique(groups.astype(str))).any())
        parts.append(CohortReport(name=name, images=len(targets), seen=trained, findings=lines))
    told = PseudoReport(
        key=record.key,
        provenance=record.provenance,
        values=record.values,
        transductive=record.transductive,
        cohorts=tuple(parts),
    )
    return soft, told
