"""`python -m cxrlt_ray.predict --ensemble ensemble.json --data NEW`: score new images as the test images were scored.

The images are prepared at the sizes of the run's shards, scored by the ensemble's members in one pass and combined with
its weights; the members' checkpoints must be those from which the ensemble was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cxrlt_ray import cli, output
from cxrlt_ray.data.asking import names_in
from cxrlt_ray.data.column_names import folded
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.tasks import CHALLENGE
from cxrlt_ray.ensembling.apply import Ensemble
from cxrlt_ray.ensembling.asked import answers, ask
from cxrlt_ray.ensembling.maps import attention_maps, mapping_member
from cxrlt_ray.ensembling.new_images import score_prepared
from cxrlt_ray.ensembling.request import PredictRequest
from cxrlt_ray.ensembling.stored import load
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.calibration import Calibration
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.runs.records import TRANSDUCTIVE
from cxrlt_ray.storage import Store
from cxrlt_ray.text.descriptions import own_labels

if TYPE_CHECKING:
    import numpy as np

__all__ = ["PredictRequest", "main", "run"]


def run(request: PredictRequest) -> Predictions:
    """Score the images of a directory with an ensemble, and write predictions.parquet and submission.csv to `out`.

        from cxrlt_ray import predict
        predict.run(predict.PredictRequest(ensemble="runs/RUN/ensembles/greedy/ensemble.json", data="/data/new"))

    With `ask`, also asked.csv: a column for each finding asked for, predicted from text if the members were not trained
    on it. With `calibrate` the ensemble's calibration is applied to its own findings; others asked for stay
    uncalibrated. Raises UsageError for data without images, if no member can be asked and if no calibration is kept;
    CxrltError if a member is missing or has changed.
    """
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.prepare import prepare

    ensemble = load(request.ensemble)
    calibration = _calibration(request, ensemble)
    names, track = names_in(request.ask) if request.ask is not None else (), ensemble.record.track
    asked = ask(ensemble.trials, ensemble.findings, ensemble.weights, names, request.ask_descriptions, track=track)
    if ensemble.record.transductive:
        print(TRANSDUCTIVE)
    mapping = mapping_member(ensemble.trials, ensemble.weights) if request.maps is not None else None
    images = _read_images(request, ensemble)
    store = Store(request.out).absolute()
    store.check_writable()
    start_ray(request.address)
    record = ensemble.record
    shards = prepare(images, request.storage, record.sizes, request.max_bad, record.quality, checksum=request.checksum)
    scores = score_prepared(ensemble, store, shards, images, asked)
    ids, count = images.table["image_id"].to_numpy(), len(ensemble.findings)
    if calibration is not None:
        scores[:, :count] = calibration.apply(scores[:, :count], ensemble.findings)
    split, fingerprint = request.split or "new", ensemble.record.fingerprint
    predictions = Predictions(ids, scores[:, :count], ensemble.findings, split, fingerprint, track=record.track)
    _write(request, ensemble, store, predictions)
    if names:
        own = own_labels(ensemble.findings, names)
        columns = tuple(own.get(name, name) for name in names)
        table = Predictions(ids, answers(scores, ensemble.findings, asked, names), columns, split, fingerprint)
        with store.place("asked.csv") as path:
            table.frame().to_csv(path)
    if mapping is not None:
        rows = asked.rows(mapping) if asked else {}
        _draw_maps(request, attention_maps(ensemble.trials[mapping], rows, names, shards, images.table), names)
    packed = ["submission.zip"] if request.zip else []
    left = ["predictions.parquet", "submission.csv", *packed, *(["asked.csv"] if names else [])]
    for former in {"submission.zip", "asked.csv"} - set(left):  # of other images, under the same names
        if store.exists(former):
            store.delete(former)
    line = f"{len(ids):,} images scored by {len(ensemble.trials)} members: {request.out}/{', '.join(left)}"
    output.result(line, [f"{request.out}/{name}" for name in left], images=len(ids))
    return predictions


def _calibration(request: PredictRequest, ensemble: Ensemble) -> Calibration | None:
    """The calibration to apply. Raises UsageError if one is requested and the ensemble keeps none."""
    kept = ensemble.record.calibration
    if request.calibrate and kept is None:
        raise UsageError(
            f"{request.ensemble} keeps no calibration: make the ensemble with `python -m cxrlt_ray.ensemble "
            "--calibrate`, or leave out --calibrate."
        )
    if kept is not None and not request.calibrate:
        print("Scores as they are: the ensemble keeps a calibration, which --calibrate applies")
    return kept if request.calibrate else None


def _read_images(request: PredictRequest, ensemble: Ensemble) -> Manifest:
    """The images to score; labels, if there are any, are not read."""
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


def _write(request: PredictRequest, ensemble: Ensemble, store: Store, predictions: Predictions) -> None:
    """Write the predictions, and the submission made from them."""
    from cxrlt_ray.ensembling import submission

    predictions.write(store, "predictions.parquet")
    ids = predictions.image_id
    task = ensemble.record.task
    table = submission.build(ids, predictions.probabilities, ensemble.findings, task.id_column)
    submission.write(store, table, task, ids, zip=request.zip)


def _draw_maps(
    request: PredictRequest, maps: Iterator[tuple[int, np.ndarray, np.ndarray]], names: Sequence[str]
) -> None:
    """Write a picture for each image and finding, named by the row of asked.csv, from 1, and the finding."""
    from cxrlt_ray.reporting.maps import overlay

    assert request.maps is not None
    store, count = Store(request.maps).absolute(), 0
    store.check_writable()
    for row, pixels, of_image in maps:
        for name, attention in zip(names, of_image, strict=True):
            store.write(f"{row + 1:06d}-{folded(name)}.png", overlay(pixels, attention))
            count += 1
    print(f"{count:,} pictures: {request.maps}/ROW-FINDING.png, by the rows of asked.csv")


main = cli.command(
    PredictRequest,
    run,
    """Score unlabelled images with an ensemble.

    python -m cxrlt_ray.predict --ensemble runs/RUN/ensembles/greedy/ensemble.json --data /data/new
    """,
)


if __name__ == "__main__":
    cli.run("predict")
