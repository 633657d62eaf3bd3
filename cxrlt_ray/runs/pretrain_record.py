"""`pretrain.json`, beside the backbone that self-supervised pretraining left: how it was made, and of whose images.

From it is computed what a backbone has seen of the images that a run scores; nothing is inferred from names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cxrlt_ray.data.fingerprints import HashedSet, image_keys, keys_within, release_of, subject_keys
from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.contamination import Contamination
from cxrlt_ray.runs.records import Environment, Record
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store

FILE, WEIGHTS = "pretrain.json", "backbone.safetensors"
BEGAN = ", which began from "  # between the sources of weights, in a trial's record
CHOSEN = ("val", "holdout", "development", "test")  # splits whose images a run is judged on


def judged_splits(folds: int) -> tuple[str, ...]:
    """The splits whose images judge a run: with folds of images the training split does, a fold at a time."""
    return (*CHOSEN, "train") if folds > 1 else CHOSEN


class SeenImages(BaseModel):
    """The images of one pretraining, as hashes; those that it began from have their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subjects: HashedSet
    images: HashedSet


class CohortUse(BaseModel):
    """What was read of one cohort. monitored: images kept from training, to measure by. labelled: it has findings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: str
    reader: str
    images: int
    subjects: int
    monitored: int = 0
    labelled: bool = False
    splits: dict[str, int] = Field(default_factory=dict)  # images of each of its own splits, of those that were read


class Point(BaseModel):
    """A measurement, after `step` steps of stage `stage`. effective_rank: of the features; knn: mean AP; chance: its
    expectation, the mean prevalence. statistics: of the objective itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: int
    step: int
    loss: float
    effective_rank: float
    knn: float | None = None
    chance: float | None = None
    statistics: dict[str, float] = Field(default_factory=dict)


class PretrainRecord(Record):
    """`pretrain.json`.

    weights: what the backbone began from. all_splits: validation and test images were trained on too. options: of the
    command. seen: this pretraining's images, then those of the ones that it began from. epoch: of which the weights
    are, counted from 1 over all stages. reason: why it ended before its last epoch.
    """

    VERSION: ClassVar[int] = 1

    method: str
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    reason: str | None = None
    config: TrialConfig
    weights: str = ""
    smoke: bool = False
    all_splits: bool = False
    options: dict[str, bool | int | float | str | list[str] | None] = Field(default_factory=dict)
    cohorts: list[CohortUse] = Field(default_factory=list)
    seen: list[SeenImages] = Field(default_factory=list)
    workers: int = 1
    threads: int = 0
    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    images_per_second: float | None = None
    curve: list[Point] = Field(default_factory=list)
    environment: Environment = Environment()


def records_of(weights: str) -> Iterator[tuple[str, PretrainRecord]]:
    """The pretrainings among the sources of weights, as a trial's record names them, each with its own source.

    Raises CxrltError where a pretrain.json is damaged: what it saw is not known then.
    """
    for source in weights.split(BEGAN):
        folder, _, name = source.rpartition("/")
        if name != WEIGHTS:
            continue
        store = Store(folder or ".")
        if store.exists(FILE):
            yield source, PretrainRecord.read(store, FILE)


def hashed(manifest: Manifest, releases: dict[str, str], shards: Shards, salt: str) -> SeenImages:
    """The manifest's images as hashes. releases: what ids of each of its cohorts are unique within."""
    subjects = set(keys_within(manifest, releases))
    images = {key for key in image_keys(shards, manifest.table["image_id"]) if key}
    return SeenImages(subjects=HashedSet.of(subjects, salt), images=HashedSet.of(images, salt))


def contaminations(
    weights: str, manifest: Manifest, data: str, shards: Shards, splits: Iterable[str] = CHOSEN
) -> list[Contamination]:
    """What pretrainings among the sources of `weights` have seen of the main cohort's splits, where that is anything.

    data: the main cohort's directory. Raises CxrltError as `records_of`.
    """
    found, main, release = [], manifest.of_cohort(MAIN), release_of(manifest.source, data)
    for source, record in records_of(weights):
        for split in splits:
            table = main.of_split(split).table
            if not len(table):
                continue
            subjects = table["subject_id"].unique()
            keys = subject_keys(release, subjects)
            content = image_keys(shards, table["image_id"])
            known, copies = np.zeros(len(subjects), bool), np.zeros(len(table), bool)
            for seen in record.seen:
                known |= seen.subjects.holds(keys)
                copies |= seen.images.holds(content) & (np.array(content) != "")
            both = known | np.isin(subjects, table["subject_id"][copies])
            if both.any():
                found.append(
                    Contamination(
                        weights=source,
                        split=split,
                        images=int(copies.sum()),
                        of_images=len(table),
                        subjects=int(both.sum()),
                        of_subjects=len(subjects),
                    )
                )
    return found


def began_from(source: str) -> str:
    """`source` of weights with that from which its pretraining had its own, if it has a pretrain.json."""
    try:
        before = [record.weights for _, record in records_of(source) if record.weights not in ("", "none")]
    except CxrltError:
        return source
    return BEGAN.join([source, *before])
