"""Images that no run has prepared, scored by an ensemble: new ones, and those of another site."""

from __future__ import annotations

import hashlib

import numpy as np

from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.shards import MAX_BAD, Shards
from cxrlt_ray.ensembling.apply import Ensemble, filled
from cxrlt_ray.ensembling.asked import Asked
from cxrlt_ray.ensembling.pool import Say
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.predictions import Predictions, read_predictions
from cxrlt_ray.storage import Store

SITES = "sites"  # below an ensemble's directory: the predictions of other sites' images


def score_prepared(
    ensemble: Ensemble, store: Store, shards: tuple[Shards, ...], images: Manifest, asked: Asked | None = None
) -> np.ndarray:
    """The ensemble's scores [N, C + A] of prepared images; what cannot be decoded gets each finding's mean.

    store: what a killed run had scored of the same images by the same members is kept there, and used.
    """
    members = (shards, ensemble.record.members, asked) if asked else (shards, ensemble.record.members)
    key = hashlib.sha256(repr(members).encode()).hexdigest()[:8]
    work = store / f"scoring-{key}"
    scores = filled(ensemble.score(work, shards, images.table, asked))
    if work.exists(""):
        work.remove()
    return scores


def score_site(
    ensemble: Ensemble,
    folder: Store,
    name: str,
    images: Manifest,
    storage: str,
    address: str | None = None,
    max_bad: float = MAX_BAD,
    say: Say = print,
) -> np.ndarray:
    """The ensemble's scores [N, C] of another site's images, kept in `folder` and used again by the same ensemble.

    folder: the ensemble's directory. storage: where shards are kept.
    """
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.prepare import prepare

    store, file = folder / SITES / name, "predictions.parquet"
    record, ids = ensemble.record, images.table["image_id"].to_numpy()
    fingerprint = _fingerprint(ensemble, images)
    if store.exists(file):
        try:
            known = read_predictions(store, file, ensemble.findings, name, fingerprint).frame()
            say(f"Site {name}: scores of {len(ids):,} images are read from {store.uri}/{file}")
            return known.loc[ids.astype(str)].to_numpy(np.float64)
        except (CxrltError, KeyError):
            say(f"Site {name}: {store.uri}/{file} is of other images or another ensemble: they are scored anew")
    store.check_writable()
    start_ray(address)
    shards = prepare(images, storage, record.sizes, max_bad, record.quality)
    scores = score_prepared(ensemble, store, shards, images)
    Predictions(ids, scores, ensemble.findings, name, fingerprint, track=record.track).write(store, file)
    return scores


def _fingerprint(ensemble: Ensemble, images: Manifest) -> str:
    """What scores depend on: the images with their labels, and the ensemble as it is recorded."""
    of_ensemble = ensemble.record.model_dump_json(exclude={"scores"})
    return hashlib.sha256(f"{images.fingerprint} {of_ensemble}".encode()).hexdigest()[:16]
