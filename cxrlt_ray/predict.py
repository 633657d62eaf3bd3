"""`python -m cxrlt_ray.predict --ensemble ensemble.json --data NEW`: new images scored as the test images were.

The images are prepared at the sizes of the run's shards, scored by the ensemble's members in one pass and
combined by its weights; the members' weights must be those the ensemble was made with.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from cxrlt_ray import cli
from cxrlt_ray.ensembling.pool import TTA
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.runs.store import DEFAULT_STORAGE, Trial, read_trial
from cxrlt_ray.selection.views import StudyRule
from cxrlt_ray.storage import Store


@dataclass(frozen=True)
class Ensemble:
    """What ensemble.json says, its members' trials and their weights float64 [M, C]."""

    about: dict[str, Any]
    trials: list[Trial]
    weights: np.ndarray

    @property
    def tta(self) -> list[bool]:
        """Which members look under test-time augmentation [M]."""
        return [member.get("tta", False) for member in self.about["members"]]

    @property
    def rule(self) -> StudyRule:
        """How the images of a study are joined; an ensemble of before `aggregation` has the mean where it has views."""
        views = self.about.get("views")
        return StudyRule(self.about.get("aggregation") or ("none" if views is None else "mean"), views)

    @property
    def findings(self) -> tuple[str, ...]:
        """The task's findings, in order."""
        return tuple(self.about["task"]["findings"])


def load(uri: str) -> Ensemble:
    """Read an ensemble.json and find its members. Raises CxrltError where one is missing or has changed."""
    from cxrlt_ray.ensemble import VERSION, fingerprint

    folder, _, name = uri.rpartition("/")
    about = Store(folder or ".").read_json(name)
    if not isinstance(about, dict) or about.get("version") != VERSION or "members" not in about:
        raise UsageError(f"{uri} is not an ensemble.json of cxrlt_ray, version {VERSION}.")
    run = _run_of(about, folder)
    trials = []
    for member in about["members"]:
        trial = read_trial(run / "trials" / member["trial"])
        for checkpoint, made_with in member["checkpoints"].items():
            if not trial.store.exists(checkpoint):
                raise CxrltError(f"{trial.store.uri}/{checkpoint}, a member of {uri}, is gone: select anew.")
            if fingerprint(trial.store, checkpoint) != made_with:
                raise CxrltError(f"{trial.store.uri}/{checkpoint} changed since {uri} was made: select anew.")
        if not member["checkpoints"]:
            raise CxrltError(f"{trial.store.uri}, a member of {uri}, has no checkpoint left to score with.")
        trials.append(trial)
    findings = about["task"]["findings"]
    weights = np.array([[member["weights"][finding] for finding in findings] for member in about["members"]])
    return Ensemble(about, trials, weights)


def score(ensemble: Ensemble, work: Store, shards: tuple[Any, ...], images: pd.DataFrame) -> np.ndarray:
    """The ensemble's scores float64 [N, C] in [0, 1] of `images`, rows of a manifest; nan for those in quarantine."""
    from cxrlt_ray.data.manifest import studies
    from cxrlt_ray.ensemble import applied
    from cxrlt_ray.ensembling import score as scoring

    ids = images["image_id"].to_numpy()
    predictions = np.full((len(ensemble.trials), len(ids), len(ensemble.findings)), np.nan, np.float32)
    members = [scoring.member(*each) for each in zip(ensemble.trials, ensemble.tta, strict=True)]
    found = scoring.score(work, shards, members, images)
    rows = np.flatnonzero(np.isin(ids, found.index))
    predictions[:, rows] = np.stack(found.loc[ids[rows], "scores"].to_list(), axis=1)
    inputs = (predictions, _references(ensemble), ensemble.weights)
    return applied(ensemble.about["space"], ensemble.rule, *inputs, *studies(images))


def main(
    ensemble: Annotated[str, cli.option("an ensemble.json: path or URI")],
    data: Annotated[str, cli.option("the new images: a directory or URI, with or without a table")],
    format: Annotated[str | None, cli.option("the data's format; found by looking without it")] = None,
    split: Annotated[str | None, cli.option("score only this split of the data")] = None,
    out: Annotated[str, cli.option("where to leave predictions.parquet and submission.csv")] = "predictions",
    storage: Annotated[str, cli.option("where to keep the shards: a directory or URI")] = DEFAULT_STORAGE,
    max_bad: Annotated[float, cli.option("the share of images that may be undecodable")] = 0.05,
    zip: Annotated[bool, cli.option("also write submission.zip", "--zip")] = False,
    address: Annotated[str | None, cli.option("join a Ray cluster, from its head: auto")] = None,
) -> None:
    """Score unlabelled images with an ensemble.

    python -m cxrlt_ray.predict --ensemble runs/RUN/ensembles/greedy/ensemble.json --data /data/new
    """
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.data.tasks import Task
    from cxrlt_ray.ensemble import filled
    from cxrlt_ray.ensembling import submission

    loaded = load(ensemble)
    cohort = read_cohort(data, format=format, task=_task_argument(loaded), labelled=False)
    for note in cohort.notes:
        print(note)
    images = cohort.manifest.of_split(split) if split else cohort.manifest
    if not len(images.table):
        raise UsageError(f"{data} has no images" + (f" of split {split}." if split else "."))
    store = Store(out).absolute()
    store.check_writable()
    start_ray(address)
    shards = prepare(images, storage, loaded.about["sizes"], max_bad, loaded.about["quality"])
    ids = images.table["image_id"].to_numpy()
    # what a killed run left is good for the same members and images only
    key = hashlib.sha256(repr((shards, loaded.about["members"])).encode()).hexdigest()[:8]
    work = store / f"scoring-{key}"
    scores = filled(score(loaded, work, shards, images.table))
    if work.exists(""):
        work.remove()
    Predictions(ids, scores, loaded.findings, split or "new", loaded.about["fingerprint"]).write(
        store, "predictions.parquet"
    )
    task = Task(loaded.about["task"]["name"], loaded.findings, loaded.about["task"]["scored_split"])
    submission.write(store, submission.build(ids, scores, loaded.findings), task, ids, zip=zip)
    print(f"{len(ids):,} images scored by {len(loaded.trials)} members: {out}/predictions.parquet, submission.csv")


def _run_of(about: dict[str, Any], folder: str) -> Store:
    """The run: where it was, else two levels above the ensemble, should the whole have been moved."""
    recorded = Store(about["run"])
    if recorded.exists("run.json") or "://" in folder:
        return recorded
    beside = Store(str(Path(folder or ".").resolve().parents[1]))
    if beside.exists("run.json"):
        return beside
    raise CxrltError(f"the run of this ensemble is not at {recorded.uri} any more: its members cannot be loaded.")


def _references(ensemble: Ensemble) -> np.ndarray:
    """The members' validation predictions [M, V, C], which ranks refer to."""
    if ensemble.about["space"] != "rank":
        return np.empty((len(ensemble.trials), 0, len(ensemble.findings)), np.float32)
    frames = [
        trial.predictions(TTA if looked else "val") for trial, looked in zip(ensemble.trials, ensemble.tta, strict=True)
    ]
    shared = frames[0].index
    for frame in frames[1:]:
        shared = shared.intersection(frame.index)
    return np.stack([frame.loc[shared, list(ensemble.findings)].to_numpy(np.float32) for frame in frames])


def _task_argument(ensemble: Ensemble) -> str:
    """The reader's task: a challenge's own files where it is one, else whatever the data holds."""
    name = ensemble.about["task"]["name"]
    return name if name in ("task1", "task2") else "auto"


if __name__ == "__main__":
    cli.run("predict")
