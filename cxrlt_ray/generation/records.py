"""generator.json, of a trained generator, and generate.json, of a folder of generated images: typed and versioned."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from cxrlt_ray.data.fingerprints import HashedSet
from cxrlt_ray.generation.config import GeneratorConfig
from cxrlt_ray.privacy import GENERATED_MARKER
from cxrlt_ray.runs.records import Record

GENERATOR, GENERATED = "generator.json", GENERATED_MARKER


class Learnt(BaseModel):
    """The images that a generator has learnt.

    data, task: as `train` was given them. cohort: the manifest's fingerprint; subjects: one of the subjects' ids.
    release: within which these ids are unique; seen: the subjects as hashes, by which a sweep computes whether it is
    judged on some of them; None in a record of version 1. shards: the directory of the prepared images. view: the view
    that most of them have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    task: str
    findings: tuple[str, ...]
    images: int
    subjects_count: int
    cohort: str
    subjects: str
    release: str = ""
    seen: HashedSet | None = None
    shards: str
    size: int
    views: str = "frontal"
    view: str = ""


class GeneratorRecord(Record):
    """`generator.json`. steps: taken, of config.steps. stopped: why not all. losses: the mean of each tenth of them."""

    VERSION: ClassVar[int] = 2

    version: int = 2
    config: GeneratorConfig
    learnt: Learnt
    seed: int = 0
    steps: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    losses: tuple[float, ...] = ()
    parameters: int = 0
    smoke: bool = False
    created: str = ""


class Sampled(BaseModel):
    """How images were drawn. sets: findings that were asked for, those of a set joined by +."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sets: tuple[str, ...]
    each: int
    company: str
    guidance: float
    solver: str
    solver_steps: int
    seed: int
    resolution: int


class FindingTally(BaseModel):
    """What became of the images that were drawn for a set. positives: real training images that have it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positives: int
    drawn: int
    kept: int
    dropped: dict[str, int] = Field(default_factory=dict)  # reason -> images
    auroc: tuple[float | None, float | None, float | None] | None = None  # the teacher's, with its interval
    auroc_real: tuple[float | None, float | None, float | None] | None = None


class Filtered(BaseModel):
    """How images were chosen. teacher_saw: images whose source subject all of the teacher's models had seen.

    distance: below it an image is a near-copy; the share `false_alarms` of real images is that near to another's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str | None = None
    agreement: float = 0.0
    teacher_saw: int = 0
    features: str | None = None
    false_alarms: float = 0.01
    distance: float | None = None
    quota: int | None = None


class GeneratedRecord(Record):
    """`generate.json`: marks a folder of generated images, which only train. generator: where its weights were."""

    VERSION: ClassVar[int] = 2

    version: int = 2
    generator: str
    learnt: Learnt
    sampled: Sampled
    filtered: Filtered | None = None
    tallies: dict[str, FindingTally] = Field(default_factory=dict)
    images: int = 0
    created: str = ""
