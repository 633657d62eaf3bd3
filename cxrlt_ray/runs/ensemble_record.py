"""`ensemble.json`: an ensemble of a run's trials, typed and versioned; read and written here alone."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.calibration import Calibration
from cxrlt_ray.runs.contamination import Contamination
from cxrlt_ray.runs.records import Record
from cxrlt_ray.storage import Store

FILE = "ensemble.json"


class MemberRecord(BaseModel):
    """A trial of the ensemble.

    tta: whether it scores under test-time augmentation. checkpoints: name -> `weights_fingerprint`; all must be as
    they were. weights: finding -> weight >= 0; of all members they sum to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: str
    resolution: int | None = None
    tta: bool = False  # files of before test-time augmentation do not say
    checkpoints: dict[str, str] = Field(default_factory=dict)
    weights: dict[str, float]


class ChosenMethod(BaseModel):
    """What cross-fitting chose. guard: null where all findings are weighed alike (an infinite guard)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    selector: str
    guard: float | None = None


class EnsembleRecord(Record):
    """`ensemble.json`.

    run: its URI. fingerprint: of the run's manifest. sizes, quality: of the shards, edges in pixels and JPEG quality.
    From `selector` to `repeats`: the ensembles/ file as it was applied, with the space, aggregation, views and gating
    that were taken. calibration: of its scores, None where --calibrate was not given. seen: what members' pretrained
    weights have seen of the images that judge them. scores: what
    ensembling.compare.as_json makes of the comparison.
    """

    VERSION: ClassVar[int] = 2

    version: int = 2
    name: str = ""
    task: Task
    run: str = ""
    fingerprint: str = ""
    sizes: list[int] = Field(default_factory=list)
    quality: int = 95
    track: str | None = None  # of findings asked for by text (data/asking.py)
    transductive: bool = False  # test images trained its members, by pseudo-labels
    selector: str = ""
    settings: dict[str, int | float | str | bool] = Field(default_factory=dict)
    fallback: list[str] = Field(default_factory=list)
    choices: list[str] = Field(default_factory=list)
    space: Literal["probability", "logit", "rank"] = "probability"
    aggregation: Literal["none", "mean", "max", "noisy_or"] | None = None  # None: a file of before this key
    views: dict[str, float] | None = None
    gating: float = 0.0
    tta: Literal["auto", "on", "off"] = "auto"
    guard: float | Literal["auto"] | None = 0.0
    lean: Literal["global", "mean", "sound"] = "global"
    blend: list[str] = Field(default_factory=list)
    best_of_each: str | None = None
    members: list[MemberRecord]
    folds: int = 5
    repeats: int = 1
    chosen: ChosenMethod | None = None
    calibration: Calibration | None = None  # files of before calibration have none
    seen: list[Contamination] = Field(default_factory=list)
    scores: dict[str, JsonValue] = Field(default_factory=dict)

    @classmethod
    def parse(cls, content: Any, where: str) -> Self:
        """`content` of the file `where`. Raises UsageError for another version, CxrltError for a damaged file."""
        version = content.get("version") if isinstance(content, dict) else None
        if not isinstance(version, int) or version < cls.VERSION or "members" not in content:
            raise UsageError(f"{where} is not an ensemble.json of cxrlt_ray, version {cls.VERSION}.")
        return super().parse(content, where)

    def write(self, store: Store, name: str = FILE) -> None:
        """Write the record, whole or not at all. Keys without a value are null, as a number that is not finite is."""
        store.write_json(name, self.model_dump(mode="json"))

    @property
    def findings(self) -> tuple[str, ...]:
        """The task's findings [C], in order."""
        return self.task.findings

    @property
    def joined_by(self) -> Literal["none", "mean", "max", "noisy_or"]:
        """How the images of a study are joined; without `aggregation`, the mean where views have weights."""
        if self.aggregation is not None:
            return self.aggregation
        return "none" if self.views is None else "mean"


def weights_fingerprint(store: Store, checkpoint: str) -> str:
    """16 hex digits of the SHA-256 of a checkpoint's weights."""
    return hashlib.sha256(store.read(f"{checkpoint}/model.safetensors")).hexdigest()[:16]
