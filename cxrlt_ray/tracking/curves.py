"""What a tracker is told of a trial and of an ensemble: numbers and names, from their records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cxrlt_ray.runs.ensemble_record import EnsembleRecord
from cxrlt_ray.runs.records import TrialRecord

Setting = bool | int | float | str
ROOTS = ("/", "~", "./", "../")
FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npy", ".npz", ".yaml", ".yml", ".csv", ".parquet")
BOUNDS = {"map": "", "low": " low", "high": " high"}  # of a score in ensemble.json


@dataclass(frozen=True)
class Point:
    """An epoch of a trial.

    index: its place among all the trial's epochs, of all folds. step: the epoch, from 0 over all stages of a fold.
    values: by name; what is not known is not there.
    """

    index: int
    fold: int
    step: int
    values: dict[str, float]


def points(record: TrialRecord, since: int = 0) -> list[Point]:
    """The trial's epochs after the first `since`."""
    return [
        Point(index, epoch.fold, epoch.epoch, _known(_values(record, index)))
        for index, epoch in enumerate(record.epochs)
        if index >= since
    ]


def _values(record: TrialRecord, index: int) -> dict[str, float | None]:
    epoch = record.epochs[index]
    score = {record.metric_of(epoch.stage).name: epoch.score}
    return score | {"loss": epoch.loss, "images_per_second": epoch.images_per_second}


def _known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and value == value}


def settings(record: TrialRecord) -> dict[str, Setting]:
    """How the trial was trained: what the search chose, and the rest of its configuration that is a plain value."""
    config: dict[str, Any] = record.config.model_dump(mode="json") if record.config else {}
    chosen = {**config, **record.params}
    return {name: nameless(value) for name, value in chosen.items() if isinstance(value, bool | int | float | str)}


def nameless(value: Setting) -> Setting:
    """A path or URI without the folders, which may name a site or a user; anything else as it is.

    >>> nameless("/home/ann/kebert"), nameless("timm/convnext_small.fb_in22k")
    ('kebert', 'timm/convnext_small.fb_in22k')
    >>> nameless("transformers:/home/ann/rad"), nameless("transformers:microsoft/rad-dino"), nameless("ann/mae.pth")
    ('transformers:rad', 'transformers:microsoft/rad-dino', 'mae.pth')
    """
    if not isinstance(value, str):
        return value
    kind, colon, place = ("", "", value) if "://" in value else value.rpartition(":")
    known = "://" not in value and place.count("/") < 2 and not place.startswith(ROOTS) and not place.endswith(FILES)
    return value if known else f"{kind}{colon}{place.rstrip('/').rpartition('/')[2]}"


def scores(record: EnsembleRecord) -> dict[str, float]:
    """The macro mAP of the ensemble and of what it is compared with, and its interval: 'test/greedy ensemble'."""
    systems = record.scores.get("systems")
    named: dict[str, float | None] = {}
    for title, sets in (systems if isinstance(systems, dict) else {}).items():
        for where, score in (sets if isinstance(sets, dict) else {}).items():
            for key, end in BOUNDS.items():
                value = score.get(key) if isinstance(score, dict) else None
                named[f"{where}/{title}{end}"] = value if isinstance(value, float) else None
    return _known(named)
