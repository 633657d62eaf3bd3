"""`python -m cxrlt_ray.predict --ensemble ensemble.json --data NEW`: new images scored as the test images were.

The images are prepared at the sizes of the run's shards, scored by the ensemble's members in one pass and
combined by its weights; the members' weights must be those the ensemble was made with.
"""

from __future__ import annotations

import hashlib

from cxrlt_ray import cli
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.data.tasks import CHALLENGE
from cxrlt_ray.ensembling.apply import Ensemble, filled
from cxrlt_ray.ensembling.request import PredictRequest
from cxrlt_ray.ensembling.stored import load
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.storage import Store

__all__ = ["PredictRequest", "main", "run"]


def run(request: PredictRequest) -> Predictions:
    """Score the images of a directory with an ensemble, and leave predictions.parquet and submission.csv in `out`.

        from cxrlt_ray import predict
        predict.run(predict.PredictRequest(ensemble="runs/RUN/ensembles/greedy/ensemble.json", data="/data/new"))

    Raises UsageError for data without images, CxrltError where a member is missing or has changed.
    """
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.prepare import prepare

    ensemble = load(request.ensemble)
    images = _read_images(request, ensemble)
    store = Store(request.out).absolute()
    store.check_writable()
    start_ray(request.address)
    record = ensemble.record
    shards = prepare(images, request.storage, record.sizes, request.max_bad, record.quality, checksum=request.checksum)
    predictions = _score(ensemble, store, shards, images, request.split or "new")
    _write(request, ensemble, store, predictions)
    count, members = len(predictions.image_id), len(ensemble.trials)
    print(f"{count:,} images scored by {members} members: {request.out}/predictions.parquet, submission.csv")
    return predictions


def _read_images(request: PredictRequest, ensemble: Ensemble) -> Manifest:
    """The images to score; labels, where there are any, are not read."""
    from cxrlt_ray.data.cohort import read_cohort

    # a challenge's own files where the task is one, else whatever the data holds
    name = ensemble.record.task.name
    task = name if name in CHALLENGE else "auto"
    cohort = read_cohort(request.data, format=request.format, task=task, labelled=False)
    for note in cohort.notes:
        print(note)
    images = cohort.manifest.of_split(request.split) if request.split else cohort.manifest
    if not len(images.table):
        raise UsageError(f"{request.data} has no images" + (f" of split {request.split}." if request.split else "."))
    return images


def _score(ensemble: Ensemble, store: Store, shards: tuple[Shards, ...], images: Manifest, split: str) -> Predictions:
    """The ensemble's predictions; what a killed run had scored of the same images by the same members is used."""
    key = hashlib.sha256(repr((shards, ensemble.record.members)).encode()).hexdigest()[:8]
    work = store / f"scoring-{key}"
    scores = filled(ensemble.score(work, shards, images.table))
    if work.exists(""):
        work.remove()
    ids = images.table["image_id"].to_numpy()
    return Predictions(ids, scores, ensemble.findings, split, ensemble.record.fingerprint)


def _write(request: PredictRequest, ensemble: Ensemble, store: Store, predictions: Predictions) -> None:
    """Leave the predictions, and the submission that holds them."""
    from cxrlt_ray.ensembling import submission

    predictions.write(store, "predictions.parquet")
    ids = predictions.image_id
    task = ensemble.record.task
    table = submission.build(ids, predictions.probabilities, ensemble.findings, task.id_column)
    submission.write(store, table, task, ids, zip=request.zip)


main = cli.command(
    PredictRequest,
    run,
    """Score unlabelled images with an ensemble.

    python -m cxrlt_ray.predict --ensemble runs/RUN/ensembles/greedy/ensemble.json --data /data/new
    """,
)


if __name__ == "__main__":
    cli.run("predict")
