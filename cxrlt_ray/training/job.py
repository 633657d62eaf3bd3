"""What all trials of a run share, and the images of one role in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.asking import CORPUS, MINED, OUTSIDE_LABELS, Asking
from cxrlt_ray.data.manifest import FRONTAL, MAIN, Manifest, codes
from cxrlt_ray.data.mined_labels import MINED_FILE, MinedLabels
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.data.soft_targets import FILE, SoftTargets, read_from
from cxrlt_ray.data.splits import assign_folds
from cxrlt_ray.data.stream import Ingest
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.trial_config import ALL, OUTSIDE
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import ModelSpec
    from cxrlt_ray.text.corpus import Corpus
    from cxrlt_ray.text.label_embeddings import LabelEmbeddings


@dataclass(frozen=True)
class Job:
    """What all trials of a run share.

    findings: what trials predict, in the task's order. trained_findings: what their labels are of; () for the same. A
    finding that is predicted without being trained needs a head that reads it as text.
    folds: 0 or 1: the val split validates. workers: of a trial; a step is of `batch_size` images for each, also where
    fewer of them are left to share it. soft_targets, corpus, boxes, label_embeddings: the run keeps soft targets, the
    texts of its studies, where findings are in its images, and the embeddings of its findings' texts beside its
    manifest. features: bytes that stored features of frozen backbones may take; 0: none are stored. asking: of a run
    that asks for findings by text, whose folds are of findings, not of images.
    """

    run: Store
    shards: tuple[Shards, ...]
    findings: tuple[str, ...]
    fingerprint: str
    views: str = "all"
    folds: int = 0
    seed: int = 0
    threads: int = 0
    gpu: bool = True
    workers: int = 1
    ingest: Ingest = field(default_factory=Ingest)
    trained_findings: tuple[str, ...] = ()
    soft_targets: bool = False
    corpus: bool = False
    boxes: bool = False
    features: int = 0
    asking: Asking | None = None
    label_embeddings: bool = False

    @property
    def models(self) -> int:
        """K: how many models a trial trains on folds, of images or of findings; 1 without folds."""
        return max(self.folds, self.asking.folds if self.asking else 1, 1)

    @property
    def trained(self) -> tuple[str, ...]:
        """The findings whose labels are learnt, which a model's outputs are of."""
        return self.trained_findings or self.findings

    @property
    def outputs(self) -> np.ndarray:
        """Which of a model's outputs [C] the predicted findings are.

        Raises UsageError for a finding that is predicted and not trained.
        """
        if missing := [finding for finding in self.findings if finding not in self.trained]:
            raise UsageError(f"{missing[0]} is to be predicted, but no labels of it are trained on.")
        return np.array([self.trained.index(finding) for finding in self.findings])


@dataclass(frozen=True)
class Images:
    """Images of one role, in manifest order: image_id [N], targets int8 [N, C]; codes of study and view int64 [N].

    soft: soft targets float32 [N, C], nan where there is none (pseudo-labels: where there is a label, too); None in a
    run without them. report: int64 [N], the study of each image in the run's corpus, -1 where it has no report; None in
    a run without reports. generated: bool [N], which images are generated; None where none of the run is.
    """

    image_id: np.ndarray
    targets: np.ndarray
    study: np.ndarray
    view: np.ndarray
    soft: np.ndarray | None = None
    report: np.ndarray | None = None
    generated: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image_id)

    def at(self, rows: np.ndarray) -> Images:
        """Those of `rows`, in their order."""
        columns = (self.image_id, self.targets, self.study, self.view, self.soft, self.report, self.generated)
        return Images(*(None if column is None else column[rows] for column in columns))  # type: ignore[arg-type]

    def without(self, findings: np.ndarray) -> Images:
        """The images without the labels and soft targets of `findings`, bool [C]."""
        soft = None if self.soft is None else np.where(findings, np.float32(np.nan), self.soft)
        return replace(self, targets=np.where(findings, np.int8(-1), self.targets), soft=soft)

    @property
    def real(self) -> Images:
        """Those that are not generated."""
        return self if self.generated is None else self.at(np.flatnonzero(~self.generated))


def images_of(
    manifest: Manifest,
    findings: tuple[str, ...],
    soft: SoftTargets | None = None,
    corpus: Corpus | None = None,
    fold: int | None = None,
) -> Images:
    """All images of a manifest, with their labels (and soft targets) of `findings`, and their places in a corpus.

    fold: whose teacher gave the soft targets. Pseudo-labels stand only where there is no label; of a test image that
    has any, no label and no report is given.
    """
    table, targets = manifest.table, manifest.targets(findings)
    image_id = table["image_id"].to_numpy()
    report = None if corpus is None else corpus.rows_of(manifest)
    generated = manifest.generated if manifest.synthetic else None
    if soft is None:
        return Images(image_id, targets, *codes(table), None, report, generated)
    values = soft.at(image_id, findings, fold)
    if soft.transductive:
        rows = transductive_rows(manifest, soft)
        targets[rows] = -1
        report = None if report is None else np.where(rows, -1, report)
    if soft.teacher is not None:
        values = np.where(targets >= 0, np.float32(np.nan), values)
    return Images(image_id, targets, *codes(table), values, report, generated)


def transductive_rows(manifest: Manifest, soft: SoftTargets) -> np.ndarray:
    """Bool [N]: test images of the main cohort that train by pseudo-labels, where that was asked for."""
    table = manifest.table
    test = (table["split"] == "test").to_numpy() & (manifest.cohorts == MAIN).to_numpy()
    return test & table["image_id"].isin(soft.table.index).to_numpy() & soft.transductive


def training_images(
    manifest: Manifest, job: Job, fold: int, cohorts: str = MAIN, with_validation: bool = False
) -> Images:
    """The training images of `fold`, with labels of the trained findings. The views option limits training only.

    cohorts: whose images train (TrialConfig.cohorts). with_validation: validation images train too. Raises UsageError
    for a cohort that is not there.
    """
    table = manifest.table
    train = (table["split"] == "train").to_numpy()
    validation = validation_rows(manifest, job.findings, job.folds, job.seed, fold)
    rows = (train | validation) if with_validation else train & ~validation
    soft = soft_targets_of(job.run) if job.soft_targets else None
    if soft is not None:
        rows = rows | transductive_rows(manifest, soft)
    rows = rows & rows_of_cohorts(manifest, cohorts)
    if job.views == "frontal":
        rows = rows & table["view"].isin(FRONTAL).to_numpy()
    corpus = corpus_of(job, fold)
    images = images_of(manifest, job.trained, soft, corpus, fold).at(np.flatnonzero(rows))
    if job.asking is None:
        return images
    return _for_fold(images, job, job.asking, fold, (manifest.cohorts != MAIN).to_numpy()[rows])


def _for_fold(images: Images, job: Job, asking: Asking, fold: int, others: np.ndarray) -> Images:
    """The images without labels that the model of `fold` is not to learn.

    Of its own findings it has the labels that the track has of asked ones: on track mined mined ones, on track outside
    those of other cohorts' images, `others` bool [N].
    """
    left = images.without(np.isin(job.trained, list(asking.hidden(fold))))
    own, targets = [job.trained.index(name) for name in asking.of_fold(fold)], left.targets.copy()
    if asking.track == OUTSIDE_LABELS:
        targets[:, own] = np.where(others[:, None], images.targets[:, own], np.int8(-1))
    elif asking.track == MINED and (mined := _mined_labels(job.run)) is not None:
        targets[:, own] = mined.at(left.image_id, asking.of_fold(fold))
    return replace(left, targets=targets)


def validation_images(manifest: Manifest, job: Job, fold: int) -> Images:
    """The validation images of `fold`, all of the main cohort, with labels of the predicted findings.

    Of a run that asks for findings by text, with labels of the fold's own findings only.
    """
    corpus = corpus_of(job, fold)
    rows = np.flatnonzero(validation_rows(manifest, job.findings, job.folds, job.seed, fold))
    images = images_of(manifest, job.findings, None, corpus).at(rows)
    return images.without(~np.isin(job.findings, list(job.asking.judged(fold)))) if job.asking else images


def validation_rows(manifest: Manifest, findings: tuple[str, ...], folds: int, seed: int, fold: int) -> np.ndarray:
    """Bool [N]: the val split, or with folds (of images) the training images of this fold."""
    if folds <= 1:
        return ((manifest.table["split"] == "val") & (manifest.cohorts == MAIN)).to_numpy()
    return folds_of(manifest, findings, folds, seed) == fold


def folds_of(manifest: Manifest, findings: tuple[str, ...], folds: int, seed: int) -> np.ndarray:
    """The fold of each of the main cohort's training images, int64 [N]; -1 of other images.

    By the predicted findings' labels, so that a run's folds do not depend on what else is trained.
    """
    table = manifest.table
    rows = np.flatnonzero(((table["split"] == "train") & (manifest.cohorts == MAIN)).to_numpy())
    assigned = np.full(len(table), -1)
    subjects = "\0".join(map(str, table["subject_id"].to_numpy()[rows]))
    assigned[rows] = _assigned(manifest.targets(findings)[rows].tobytes(), len(findings), subjects, folds, seed)
    return assigned


@lru_cache(maxsize=2)
def _assigned(targets: bytes, findings: int, subjects: str, folds: int, seed: int) -> np.ndarray:
    """`assign_folds`, which takes seconds, once for all folds and trials of a process."""
    names = np.array(subjects.split("\0") if subjects else [], str)
    return assign_folds(np.frombuffer(targets, np.int8).reshape(len(names), findings), names, folds, seed)


def rows_of_cohorts(manifest: Manifest, cohorts: str) -> np.ndarray:
    """Bool [N]: which rows belong to the cohorts that are named: main, outside, all, or names joined by +."""
    names = manifest.cohorts
    main = (names == MAIN).to_numpy()
    known = {MAIN: main, OUTSIDE: ~main, ALL: np.ones(len(main), bool)}
    rows = known[cohorts] if cohorts in known else names.isin(cohorts.split("+")).to_numpy()
    if not rows.any():
        raise UsageError(f"cohorts: {cohorts}: the run has no images of it; give them by --cohort NAME=DIRECTORY.")
    return rows


@lru_cache(maxsize=1)
def manifest_of(run: Store) -> Manifest:
    """The run's manifest, read once by a process that runs many trials; it never changes."""
    with run.fetched("manifest.parquet") as path:
        return Manifest.read(path)


@lru_cache(maxsize=1)
def soft_targets_of(run: Store) -> SoftTargets:
    """The run's soft targets, read once by a process; they never change."""
    return read_from(run, FILE)


@lru_cache(maxsize=1)
def _mined_labels(run: Store) -> MinedLabels | None:
    """The run's mined labels of the findings in folds; None in a run without, such as one of an earlier version."""
    return MinedLabels.read(run) if run.exists(MINED_FILE) else None


def corpus_of(job: Job, fold: int) -> Corpus | None:
    """The texts that the model of `fold` reads; None in a run without."""
    if not job.corpus:
        return None
    return _corpus(job.run, job.asking.corpus_of(fold) if job.asking else CORPUS)


def embeddings_of(job: Job, spec: ModelSpec) -> torch.Tensor | None:
    """The label embeddings float32 [C, E] of the trained findings that the run keeps; None where it has none.

    So no text encoder is loaded for them where the trial runs.
    """
    if not job.label_embeddings or spec.text is None:
        return None
    import torch

    rows = _label_embeddings(job.run).of((spec.text, spec.prompts), job.trained)
    return None if rows is None else torch.from_numpy(rows)


@lru_cache(maxsize=1)
def _label_embeddings(run: Store) -> LabelEmbeddings:
    """The label embeddings of the run, read once by a process; they never change."""
    from cxrlt_ray.text.label_embeddings import LabelEmbeddings

    return LabelEmbeddings.read(run)


@lru_cache(maxsize=1)
def _corpus(run: Store, name: str) -> Corpus:
    """The texts of the run's studies, read once by a process; they never change."""
    from cxrlt_ray.text.corpus import Corpus

    return Corpus.read(run, name)
