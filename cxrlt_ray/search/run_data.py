"""What a sweep trains on: the data it was given or a phantom, the other cohorts its space names, a part held out."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.asking import MINED, OUTSIDE_LABELS, REPORTS, SCRUBBED, Asking
from cxrlt_ray.data.given_labels import GivenLabels
from cxrlt_ray.data.image_boxes import ImageBoxes, boxes_for
from cxrlt_ray.data.manifest import FRONTAL, MAIN, Manifest
from cxrlt_ray.data.mined_labels import MinedLabels
from cxrlt_ray.data.soft_targets import SoftTargets, read_soft_targets
from cxrlt_ray.data.tasks import Task, normal_among
from cxrlt_ray.data.two_labellings import TwoLabellings
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.store import DEFAULT_STORAGE, Run
from cxrlt_ray.runs.trial_config import ALL, OUTSIDE
from cxrlt_ray.search.asking import asking_of, corpora_of, lines, out_of_reach, task_of, with_mined
from cxrlt_ray.search.generated import check_generators
from cxrlt_ray.search.given_labels import labels_of
from cxrlt_ray.search.pseudo_labels import check_teacher
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.space import Space
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from cxrlt_ray.text.corpus import Corpus

PHANTOM_IMAGES, PHANTOM_SIZE = 1600, 128


@dataclass(frozen=True)
class RunData:
    """What a run trains on.

    cohorts: the directories of others by name; data: of the main one. labels: what changed the cohort's own, if any;
    labellings: both, side by side. corpora: the texts of its studies by file name, read from `reports`, if the space
    reads any. boxes: of its training images. mined: labels that folds learn, on track mined.
    """

    manifest: Manifest
    task: Task
    data: str
    cohorts: dict[str, str]
    soft: SoftTargets | None = None
    labels: GivenLabels | None = None
    asking: Asking | None = None
    corpora: dict[str, Corpus] = field(default_factory=dict)
    reports: str | None = None
    boxes: ImageBoxes | None = None
    labellings: TwoLabellings | None = None
    mined: MinedLabels | None = None

    @property
    def learnt(self) -> tuple[str, ...]:
        """The findings that a model has outputs for."""
        return self.asking.trained if self.asking else self.task.findings


def check_reports(request: SweepRequest, space: Space) -> bool:
    """Whether the run reads texts. Raises UsageError where the space needs reports or has no use for them.

    An objective that heeds what reports state does without, where none are given. A run that goes on has its own; the
    phantom that is drawn without --data has reports.
    """
    from cxrlt_ray.text.encoder_spec import check

    reading, heeding = space.reading(), space.heeds("statements")
    for stage in reading:
        check(stage.objective_spec().text_spec())
    able = bool(reading) or heeding
    lacking = request.reports is None and request.data is not None and not request.resume
    if request.reports is not None and not able and request.track != MINED:
        raise UsageError(
            f"--reports: search space {space.name} has no objective that reads texts (clip, stated and location do)."
        )
    if request.track == REPORTS and not able:
        raise UsageError(
            f"--track {REPORTS}: search space {space.name} has no objective that reads texts (clip and stated do): the "
            f"track is {SCRUBBED}."
        )
    if request.track == OUTSIDE_LABELS and space.cohorts() == {MAIN}:
        raise UsageError(
            f"--track {OUTSIDE_LABELS}: search space {space.name} trains on the main cohort only (team_b_task3 also on "
            "padchest)."
        )
    if request.track == REPORTS and not reading and lacking:
        raise UsageError(f"--track {REPORTS} learns from reports: give `--reports PATH`.")
    if able and lacking and (request.scrub is not None or request.reworded is not None):
        option = "--scrub" if request.scrub is not None else "--reworded"
        raise UsageError(f"{option} is of the reports that a run reads: give `--reports PATH`.")
    if request.scrub is not None and not able:
        raise UsageError(
            f"--scrub: search space {space.name} reads no reports, so that nothing is scrubbed: leave it out."
        )
    if request.reworded is not None and not (any(s.text_reworded for s in reading) or space.heeds("rows")):
        raise UsageError(
            f"--reworded: search space {space.name} has no objective that draws texts of reports (clip and stated do), "
            "or `text_reworded: 0`: leave it out."
        )
    if request.track == MINED and lacking:
        raise UsageError(f"--track {MINED} mines labels from reports: give `--reports PATH`.")
    if reading and lacking and not request.starts_nothing:
        raise UsageError(
            f"search space {space.name} has objective {reading[0].objective}, which needs reports: give `--reports "
            "PATH`."
        )
    if heeding and lacking and not reading:
        print(f"No --reports: search space {space.name} learns from labels alone")
    return bool(reading) or (heeding and (request.reports is not None or not request.data))


def check_boxes(request: SweepRequest, space: Space) -> None:
    """Raises UsageError where boxes are given to a space that has no use for them."""
    if request.boxes is not None and not space.heeds("boxes"):
        raise UsageError(f"--boxes: search space {space.name} has no objective that learns them (grounding does).")


def read_corpus(reports: str, manifest: Manifest, address: str | None, reworded: str | None = None) -> Corpus:
    """The texts of the manifest's studies; prints what there is to know of them. Raises UsageError as build_corpus.

    reworded: a table of them in other words.
    """
    from cxrlt_ray.text.build import build_corpus

    with tempfile.TemporaryDirectory() as folder:
        corpus, notes = build_corpus(reports, manifest, Store(folder), second=reworded, address=address)
    for note in notes:
        print(note)
    return corpus


def soft_targets_for(request: SweepRequest, space: Space) -> SoftTargets | None:
    """The soft targets that are given. Raises UsageError where the space needs them or has no use for them."""
    objective, fills = space.learns_soft_targets(), space.heeds("pseudo_labels")
    if request.soft_targets is None:
        if fills and not objective and not request.resume:
            print("No --soft-targets: objective noisy_student learns the labels alone, as the first teacher does")
        if objective and not request.starts_nothing and not request.resume:
            raise UsageError(
                f"search space {space.name} has objective {objective}, which learns stored predictions: give them by "
                "--soft-targets PATH."
            )
        return None
    if not (objective or fills):
        raise UsageError(
            f"--soft-targets: search space {space.name} has no objective that learns them (distill, noisy_student do)."
        )
    soft = read_soft_targets(request.soft_targets)
    if soft.teacher is None and not objective:
        raise UsageError(
            f"--soft-targets {request.soft_targets}: objective noisy_student learns pseudo-labels, whose teacher is on "
            "record: make them by `python -m cxrlt_ray.pseudo`; other predictions are for objective distill."
        )
    return soft


def run_data(
    request: SweepRequest, space: Space, folds: int, soft: SoftTargets | None = None, reading: bool = False
) -> RunData:
    """The cohort that is asked for as this run splits it, and the task; a phantom without --data.

    soft: to learn beside the labels. reading: with the texts of its studies. Raises UsageError where either is of other
    images, findings or studies.
    """
    drawn = (request.images if request.smoke else None) or space.images or PHANTOM_IMAGES
    stand_ins = request.storage if request.smoke and not request.data else None
    cohorts = others_of(space, request.cohorts, stand_ins, request.seed, drawn)
    data = request.data or phantom(request.storage, request.seed, drawn)
    labels = labels_of(request)
    manifest, task, asking, mined, labellings = _read(request, data, cohorts, folds, labels, soft)
    if request.smoke and request.data is not None:
        manifest = few(manifest, drawn, request.seed)
    for note in check_generators(manifest, data, cohorts):
        print(note)
    if soft is not None:
        findings = asking.seen if asking else task.findings
        print(*soft.check(manifest, findings), sep="\n")
        print(*check_teacher(soft, manifest, data, findings, folds, request.seed, space), sep="\n")
    reports = request.reports or data
    corpora: dict[str, Corpus] = {}
    if reading:
        corpora = corpora_of(read_corpus(reports, manifest, request.address, request.reworded), asking, request)
    boxes = None
    if request.boxes is not None:
        boxes = boxes_for(request.boxes, manifest, asking.seen if asking else task.findings)
        print(*boxes.notes, sep="\n")
    read = reading or (asking is not None and asking.track == MINED)
    texts = reports if read else None
    return RunData(manifest, task, data, cohorts, soft, labels, asking, corpora, texts, boxes, labellings, mined)


def data_of(run: Run) -> RunData:
    """What a run that goes on trains on."""
    record = run.record
    return RunData(run.manifest(), record.task, record.data or "", record.cohorts, asking=record.asking)


def _read(
    request: SweepRequest,
    data: str,
    cohorts: dict[str, str],
    folds: int,
    labels: GivenLabels | None,
    soft: SoftTargets | None,
) -> tuple[Manifest, Task, Asking | None, MinedLabels | None, TwoLabellings | None]:
    """The manifest as this run splits it, the task, what is asked for by text, mined labels, and both labellings.

    Prints the reader's notes.
    """
    from cxrlt_ray.data.cohort import VALIDATION, read_cohort
    from cxrlt_ray.data.tasks import load_task

    cohort = read_cohort(
        data,
        format=request.format,
        task=request.task,
        uncertain=request.uncertain,
        seed=request.seed,
        # with folds every training image is validated on once: nothing need be carved
        validation=0.0 if folds else VALIDATION,
        others=cohorts,
        labels=labels,
        unlabelled=frozenset(soft.table.index) if soft is not None and soft.teacher is not None else frozenset(),
    )
    for note in cohort.notes:
        print(note)
    manifest = _validation_folded(cohort.manifest) if folds else cohort.manifest
    if folds and manifest.synthetic:
        print(
            "Folds: generated images were learnt from training subjects, who validate in turn: validation scores are "
            "optimistic; give --folds 0"
        )
    task, asking, mined = load_task(request.task, manifest.findings), None, None
    learnt = task
    if request.asked:
        asking = asking_of(request, manifest)
        print(*lines(asking, manifest), sep="\n")
        if asking.track == MINED:
            manifest, mined = with_mined(manifest, asking, request.reports or data, request.address)
        task, manifest = task_of(request, task, asking), out_of_reach(manifest, asking)
        learnt = dataclasses.replace(task, findings=asking.seen)
    if request.likeness:
        if folds:
            raise UsageError(
                f"--val-like is for a validation split: with {folds} folds every training image is validated on. Leave "
                "it out, or give --folds 0."
            )
        manifest = with_validation_like(manifest, learnt.findings, request.likeness)
    _check_task(learnt, manifest, ("train",) if folds else ("train", "val"))
    training = manifest.of_cohort(MAIN).of_split("train").table
    if request.views == "frontal" and not training["view"].isin(FRONTAL).any():
        raise CxrltError("--views frontal leaves no training image: the data names no PA or AP view.")
    subjects = training["subject_id"].nunique()
    if folds > subjects:
        raise CxrltError(f"--folds {folds}: there are {subjects} subjects to divide into folds; give fewer folds.")
    manifest = _with_holdout(manifest, learnt.findings, request.holdout, request.seed, folds)
    return manifest, task, asking, mined, cohort.labellings


def phantom(storage: str, seed: int, images: int, what: str = "No --data: the built-in phantom cohort") -> str:
    """Draw a phantom cohort of so many images, unless it is there; its directory."""
    from cxrlt_ray.phantom import write_phantom

    folder = f"{storage if '://' not in storage else DEFAULT_STORAGE}/phantom-{images}x{PHANTOM_SIZE}-{seed}"
    print(f"{what} of {images:,} drawn chest X-rays, in {folder}")
    write_phantom(folder, images=images, size=PHANTOM_SIZE, seed=seed)
    return folder


def others_of(space: Space, known: dict[str, str], storage: str | None, seed: int, images: int) -> dict[str, str]:
    """The other cohorts that the space's stages train on; in smoke (`storage` given) phantoms stand in for them."""
    named = sorted(space.cohorts())
    others = [name for cohorts in named if cohorts not in (MAIN, OUTSIDE, ALL) for name in cohorts.split("+")]
    missing = [name for name in dict.fromkeys(others) if name not in known and name != MAIN]
    if not known and not missing and (OUTSIDE in named or (ALL in named and storage is not None)):
        missing = ["nih"]
    if missing and storage is None:
        raise UsageError(
            f"search space {space.name} trains on {', '.join(missing)} too: say where that is by "
            f"{' '.join(f'--cohort {name}=DIRECTORY' for name in missing)}, or copy the space and leave these stages "
            "out."
        )
    if ALL in named and not known and not missing:
        print(f"Search space {space.name} trains on all cohorts; there is the main one only (--cohort NAME=DIRECTORY).")
    stand_ins = {
        name: f"phantom:{phantom(str(storage), seed + 1 + k, images, f'In the place of {name}: another phantom')}"
        for k, name in enumerate(missing)
    }
    return {**known, **stand_ins}


def few(manifest: Manifest, images: int, seed: int) -> Manifest:
    """About so many images of a manifest, as whole subjects, each split in its share."""
    table = manifest.table
    if len(table) <= images:
        return manifest
    subjects = table.groupby("subject_id", sort=True).agg(size=("image_id", "size"), split=("split", "first"))
    subjects = subjects.sample(frac=1, random_state=seed)
    so_far = subjects.groupby("split", dropna=False)["size"].cumsum()
    share = subjects["split"].map(table["split"].value_counts()) * images / len(table)
    drawn = subjects.index[(so_far <= share.clip(lower=30)).to_numpy()]
    return manifest.where(table["subject_id"].isin(drawn))


def with_validation_like(manifest: Manifest, findings: tuple[str, ...], likeness: tuple[str, ...]) -> Manifest:
    """The manifest without the main cohort's validation images that are not as the test's are; prints what is left.

    likeness: `frontal`, PA or AP; `any`, with at least one of `findings`, to which Normal does not count. What is left
    out does not train either: its subjects validate. Raises CxrltError where no finding keeps a positive.
    """
    table = manifest.table
    validation = ((table["split"] == "val") & (table["cohort"] == MAIN)).to_numpy()
    positive = manifest.targets(findings) == 1
    abnormal = np.arange(len(findings)) != normal_among(findings)
    alike = np.ones(len(table), bool)
    if "frontal" in likeness:
        alike &= table["view"].isin(FRONTAL).to_numpy()
    if "any" in likeness:
        alike &= positive[:, abnormal].any(axis=1)
    left = validation & alike
    option = f"--val-like {','.join(likeness)}"
    if not positive[left].any():
        unknown = (table["view"][validation] == "UNKNOWN").all()
        why = "; the data names no view of them" if "frontal" in likeness and unknown else ""
        raise CxrltError(
            f"{option} leaves {left.sum():,} of {validation.sum():,} validation images, and no finding with a "
            f"positive{why}: leave it out."
        )
    subjects = table["subject_id"][left].nunique()
    print(f"{option}: {left.sum():,} of {validation.sum():,} validation images stay, of {subjects:,} subjects")
    return manifest.where(~validation | left)


def _validation_folded(manifest: Manifest) -> Manifest:
    """The manifest whose main cohort's validation images are among the training images, which are folded."""
    table = manifest.table.copy()
    rows = (table["split"] == "val") & (table["cohort"] == MAIN)
    if rows.any():
        print(f"Folds: the {rows.sum():,} validation images are folded with the training images")
    table.loc[rows, "split"] = "train"
    return dataclasses.replace(manifest, table=table)


def _with_holdout(manifest: Manifest, findings: tuple[str, ...], share: float, seed: int, folds: int) -> Manifest:
    """The manifest with `share` of the subjects that would validate (with folds: of train) moved to split 'holdout'."""
    if not share:
        return manifest
    from cxrlt_ray.data.splits import holdout

    table = manifest.table.copy()
    main = table["cohort"] == MAIN
    rows = np.flatnonzero((main & (table["split"] == ("train" if folds else "val"))).to_numpy())
    held = holdout(manifest.targets(findings)[rows], table["subject_id"].to_numpy()[rows], share, seed)
    table.loc[rows[held], "split"] = "holdout"
    return dataclasses.replace(manifest, table=table)


def _check_task(task: Task, manifest: Manifest, splits: tuple[str, ...]) -> None:
    """Refuse a task whose findings the data does not label; name findings without positives."""
    missing = [finding for finding in task.findings if finding not in manifest.findings]
    if missing or not task.findings:
        raise UsageError(
            f"the data has no column for {', '.join(missing) or 'any finding'} of {task.name}; "
            f"it has {', '.join(manifest.findings) or 'none'}. Choose --task auto's findings with `sweep auto`."
        )
    for split in splits:
        part = manifest.of_cohort(MAIN).of_split(split)
        if not len(part.table):
            raise CxrltError(f"the data has no {split} images: `python -m cxrlt_ray.cohort` shows what it holds.")
        none = np.flatnonzero((part.targets(task.findings) == 1).sum(0) == 0)
        if len(none) == len(task.findings):
            raise CxrltError(f"no finding of {task.name} has a positive among the {split} images.")
        if len(none):
            print(f"Without positives in {split}: {', '.join(task.findings[c] for c in none)}")
