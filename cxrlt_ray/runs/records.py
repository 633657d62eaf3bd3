"""What a sweep writes as JSON: `run.json` and `trial.json` as typed, versioned records.

They are read and written here alone. A record of an earlier version is brought to the present one as it is read; one of
a later version, or one that is damaged, is refused with a sentence that names the file.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cxrlt_ray.data.asking import MINED, Asking
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.objectives.metric import VAL_MAP, Metric
from cxrlt_ray.runs.contamination import Contamination
from cxrlt_ray.runs.label_agreement import LabelAgreement
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store

RUNNING: Final = "running"
FINISHED: Final = "finished"
PRUNED: Final = "pruned"
TRANSDUCTIVE = "TRANSDUCTIVE: test images trained these models, by pseudo-labels; scores on them are no forecast."
FAILED: Final = "failed"
State = Literal["running", "finished", "pruned", "failed"]
Promote = Literal["map", "ensemble"]  # by what ASHA chooses the trials that go on
Value = bool | int | float | str | None  # of a search parameter


class Record(BaseModel):
    """A versioned JSON file. Unknown keys of the same version are refused: a typing error must not lose a value."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, arbitrary_types_allowed=True)
    VERSION: ClassVar[int] = 1

    version: int = 1

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        """`content` of an earlier version as it would be written today. Raises UsageError where there is no way."""
        return content

    @classmethod
    def read(cls, store: Store, name: str) -> Self:
        """The record in file `name`. Raises CxrltError for a damaged one, UsageError for one of another version."""
        return cls.parse(store.read_json(name), f"{store.uri}/{name}")

    @classmethod
    def parse_json(cls, content: bytes, where: str) -> Self:
        """As `parse`, of a file's bytes: half the time where it is as this version writes it. ValueError: no JSON."""
        try:
            record = cls.model_validate_json(content)
            if record.version == cls.VERSION and "version" in record.model_fields_set:
                return record
        except ValidationError:
            pass
        return cls.parse(json.loads(content), where)

    @classmethod
    def parse(cls, content: Any, where: str) -> Self:
        """`content`, read from the file `where`, as a record. Raises as `read` does."""
        if not isinstance(content, dict):
            raise CxrltError(f"{where} is damaged: it does not hold a JSON object.")
        version = content.get("version", 0)
        if not isinstance(version, int) or version > cls.VERSION:
            raise UsageError(
                f"{where} is of version {version}, written by a later cxrlt_ray; this one reads versions up to "
                f"{cls.VERSION}: install the later one."
            )
        if version < cls.VERSION:
            content = {**cls.upgrade(dict(content)), "version": cls.VERSION}
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            faults = [".".join(map(str, item["loc"])) or "the file" for item in error.errors()]
            raise CxrltError(
                f"{where} cannot be read as a {cls.__name__}: {', '.join(dict.fromkeys(faults))}: it is damaged, or "
                "of another version of cxrlt_ray."
            ) from None

    def write(self, store: Store, name: str) -> None:
        """Write the record to file `name`, whole or not at all. Keys that are not set are left out."""
        store.write_json(name, self.content())

    def content(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return self.model_dump(mode="json", exclude_none=True)


class EpochRecord(BaseModel):
    """One epoch of one fold. `epoch` counts from 0 over all stages; `score` is the metric's value after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fold: int
    stage: int
    epoch: int
    score: float | None = None
    loss: float | None = None
    images_per_second: float = 0.0


class Retry(BaseModel):
    """Why a trial was begun anew, and when (seconds since 1970)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str
    at: float


class Retraining(BaseModel):
    """What a trial whose files were damaged had reached: it is trained again as far as that.

    curve: (epochs done, best score so far) after each epoch that it had reported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State
    curve: tuple[tuple[int, float], ...]


class Augmented(BaseModel):
    """Validation under test-time augmentation: passes an image, the score, and its time as a multiple of plain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    augmentations: int
    score: float | None
    price: float


class Refit(BaseModel):
    """The model trained on train and validation images: its epochs, and seconds by part."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int
    seconds: dict[str, float]


class Environment(BaseModel):
    """Where a trial was trained. Versions by package."""

    model_config = ConfigDict(frozen=True, extra="allow")

    cxrlt_ray: str = ""
    python: str = ""
    torch: str = ""
    timm: str = ""
    device: str = ""


class TrialRecord(Record):
    """`trial.json`: one trial, as far as it has come.

    state: running, finished, pruned (stopped early by the scheduler) or failed. score: of the kept predictions, by
    `metric`. stage: of the kept checkpoint. findings: what the predictions are of, `trained_findings` what the labels
    in training were of. config is None where a trial ended before it began.
    """

    VERSION: ClassVar[int] = 1

    name: str
    state: State
    params: dict[str, Value] = Field(default_factory=dict)
    config: TrialConfig | None = None
    metric: Metric = VAL_MAP
    score: float | None = None
    findings: tuple[str, ...] = ()
    trained_findings: tuple[str, ...] = ()
    fingerprint: str = ""  # of the manifest
    weights: str = ""  # where the first stage's weights came from
    soft_targets: str | None = None  # provenance of the soft targets, if the trial learnt from any
    precision: str | None = None  # of the forward passes that predicted: fp32 or bf16
    began: float | None = None
    ended: float | None = None
    attempt: int = 0
    flops: int | None = None  # floating-point operations to score one image with one of its models
    epochs: list[EpochRecord] = Field(default_factory=list)
    stage: int = -1
    best_epoch: int | None = None
    images_per_second: float | None = None
    seconds: dict[str, float] | None = None
    environment: Environment = Environment()
    tta: Augmented | None = None
    refit: Refit | None = None
    retraining: Retraining | None = None
    retries: list[Retry] = Field(default_factory=list)
    reason: str | None = None  # of a failure
    own_fault: bool = False  # the failure is the trial's: trying again would not help
    dropped: bool = False  # the checkpoints were removed to save disk

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Version 0 had `val_map` for `score`, `again` for `retraining`, and {} for no config."""
        content["score"] = content.pop("val_map", None)
        content["config"] = content.get("config") or None
        if (again := content.pop("again", None)) is not None:
            content["retraining"] = again
        for epoch in content.get("epochs", []):
            if "val_map" in epoch:
                epoch["score"] = epoch.pop("val_map")
        if (tta := content.get("tta")) is not None and "val_map" in tta:
            tta["score"] = tta.pop("val_map")
            tta["augmentations"] = tta.pop("looks")
        if "findings" in content:
            content.setdefault("trained_findings", content["findings"])
        return {key: value for key, value in content.items() if value is not None}

    def content(self) -> dict[str, Any]:
        """As Record's, with the settings of a trial that are null and would be read as their default."""
        content = super().content()
        if self.config is not None:
            unset = {name for name, value in self.config if value is None}
            content["config"] |= {name: None for name in unset if TrialConfig.model_fields[name].default is not None}
        return content

    def epochs_of(self, fold: int = 0, stage: int | None = None) -> list[EpochRecord]:
        """The epochs of a fold (the first one's are what the scheduler saw), of all stages or of one."""
        return [e for e in self.epochs if e.fold == fold and stage in (None, e.stage)]

    def best_of(self, fold: int, stage: int, last: int | None = None, by: float = 0.0) -> EpochRecord:
        """The epoch whose checkpoint is kept: the first of the best of a fold's stage, up to epoch `last`.

        by: the last one that was better by this share than the last such one before it.
        """
        epochs = [e for e in self.epochs_of(fold, stage) if last is None or e.epoch <= last]
        metric, best = self.metric_of(stage), epochs[0]
        for epoch in epochs:
            if metric.better(epoch.score, best.score, by):
                best = epoch
        return best

    def out_of_patience(self, fold: int, stage: int, patience: int, gain: float = 0.0) -> bool:
        """Whether the last `patience` epochs of a fold's stage were no better than one before them; not for 0.

        gain: an epoch is better if it is so by this share. Validation scores wander: without it steps within chance
        keep a training going that has learnt.
        """
        return 0 < patience <= self.epochs_of(fold, stage)[-1].epoch - self.best_of(fold, stage, by=gain).epoch

    def metric_of(self, stage: int) -> Metric:
        """What the epochs of a stage are judged by; the last stage's is the trial's."""
        if self.config is None or not self.config.stages:
            return self.metric
        return self.config.staged()[stage].metric


class ShardsRecord(BaseModel):
    """Prepared images of one edge length in pixels, by the name of their directory below STORAGE/shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: int


class RunRecord(Record):
    """`run.json`: what was asked for when the run was made, and what it trains on."""

    VERSION: ClassVar[int] = 1

    name: str
    created: str = ""  # UTC, ISO 8601
    fingerprint: str = ""  # of the manifest
    task: Task
    task_argument: str = "auto"
    data: str | None = None
    format: str = ""
    space: str = ""
    trials: int = 0
    epochs: int | None = None
    smoke: bool = False
    cohorts: dict[str, str] = Field(default_factory=dict)
    folds: int = 0
    ask: str | None = None
    finding_folds: int = 0  # of seen findings, where findings are asked for by text
    asking: Asking | None = None
    descriptions: str | None = None  # provenance of the user's own, which the run keeps
    holdout: float = 0.0
    objectives: str = "map"
    views: str = "all"
    val_like: str | None = None
    uncertain: str = "null"
    seed: int = 0
    max_bad: float = 0.05
    sizes: str | None = None
    quality: int = 95
    search_db: str | None = None
    soft_targets: str | None = None
    transductive: bool = False  # test images trained, by pseudo-labels
    reports: str | None = None  # where the texts in its corpus came from
    reworded: str | None = None  # where their second wordings came from
    boxes: str | None = None  # provenance of boxes of findings in its images
    scrub: str | None = None  # the list of other wordings that were scrubbed from them
    warm_from: tuple[str, ...] = ()  # earlier runs whose best settings are tried first
    start: tuple[dict[str, Value], ...] = ()  # the start points, under Optuna's names; () for the space's own
    labels: str | None = None  # provenance of labels that were given beside the cohort's, and how they were used
    labels_mode: str | None = None
    labels_blank: str | None = None
    label_agreement: tuple[LabelAgreement, ...] = ()  # of those with the cohort's own
    pixels: int | None = None  # to which a time budget capped the space's resolutions
    prune: bool | None = None  # whether ASHA stops trials, where a time budget decided it
    promote: Promote = "map"
    shards: tuple[ShardsRecord, ...] = ()
    seen: tuple[Contamination, ...] = ()  # what pretrained weights have seen of the images that judge it

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Version 0 had the same keys. Raises UsageError for the earlier layout of shards."""
        if not isinstance(content.get("shards"), list):
            raise UsageError(
                f"run {content.get('name')} was made by an earlier version of cxrlt_ray, whose shards are not read any "
                "more: make a new one."
            )
        return content

    @property
    def models(self) -> int:
        """How many models a trial trains on folds, of images or of findings; 1 without folds."""
        return max(self.folds, self.finding_folds, 1)

    @property
    def predicted(self) -> tuple[str, ...]:
        """The findings that trials predict: the task's, and the seen ones by which those are chosen."""
        return self.asking.predicted if self.asking else self.task.findings

    @property
    def choose_by(self) -> str:
        """What chooses among trials that are asked for findings by text."""
        return MINED if self.asking and self.asking.by_mined else "folds"

    @property
    def track(self) -> str | None:
        """What training has seen of the findings that are asked for by text; None where none is."""
        return self.asking.track if self.asking else None

    @property
    def sizes_of_shards(self) -> list[int]:
        """The edges of the prepared images, in pixels."""
        return [shards.size for shards in self.shards]


def now() -> str:
    """The present moment, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
