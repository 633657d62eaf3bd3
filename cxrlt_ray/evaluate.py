"""`python -m cxrlt_ray.evaluate SUBMISSION.csv --task task1 --data DIR`: score a submission.

The challenge's scores (evaluation/scores.py), beside those of the paper's teams if the images are the same. The
challenge ranks by macro mAP, ties by macro AUROC. 78,946 images of 40 findings take about 10 s on 2 cores, once the
cohort is read. `--by` adds scores by group (evaluation/groups.py); `--external` scores another site's images with an
ensemble and compares them with those of its own cohort (evaluation/sites.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlt_ray import cli, output
from cxrlt_ray.data.groups import group_columns
from cxrlt_ray.data.manifest import COHORT, MAIN, Manifest
from cxrlt_ray.data.tasks import Task, load_task, rarity
from cxrlt_ray.ensembling import submission
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.given_thresholds import read_thresholds, thresholds_of
from cxrlt_ray.evaluation.groups import compare_groups
from cxrlt_ray.evaluation.published import not_comparable, published
from cxrlt_ray.evaluation.request import EvaluateRequest
from cxrlt_ray.evaluation.scores import UNSEEN, Scores, evaluate
from cxrlt_ray.evaluation.sites import ScoredImages, compare_site
from cxrlt_ray.evaluation.thresholds import AIMS, Aim
from cxrlt_ray.privacy import PHANTOM_MARKER
from cxrlt_ray.reporting import scores as report
from cxrlt_ray.reporting.groups import flags_of
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from rich.console import Console

    from cxrlt_ray.runs.ensemble_record import EnsembleRecord

__all__ = ["EvaluateRequest", "main", "run"]


@dataclass(frozen=True)
class Given:
    """What is scored: the submission's file, the split cohort, its task, and the ensemble it comes from, if any."""

    path: str
    manifest: Manifest
    task: Task
    ensemble: EnsembleRecord | None = None
    folder: Store | None = None

    def split(self, name: str | None) -> Manifest:
        """The images that were to be scored."""
        split = name or self.task.scored_split
        images = self.manifest.of_split(split)
        if images.table.empty:
            splits = ", ".join(self.manifest.table["split"].dropna().unique()) or "none"
            raise UsageError(f"{self.path}: the data has no images of split {split}: give --split, one of {splits}.")
        return images


def run(request: EvaluateRequest) -> Scores:
    """Score a submission whose labels are known; print the scores, and write them to `out`.

        from cxrlt_ray import evaluate
        scores = evaluate.run(evaluate.EvaluateRequest(submission="submission.csv", data="/data/mimic", by="sex,age"))
        scores.scores["map"], scores.intervals["map"], scores.by_group.flags

    For an ensemble's directory, `external` scores other sites' images and compares them with its own. Raises UsageError
    for a split without images and a missing column of groups, CxrltError with every fault of the submission.
    """
    console = cli.console()
    given = _given(request, console)
    table = submission.read(given.path)
    _print(console, table.attrs["notes"])
    images, scaled = submission.aligned(
        table, given.task, given.split(request.split), request.submission, request.scores
    )
    _print(console, (f"Note: {note}" for note in scaled.notes))
    scored, findings = _scored(images, scaled.probabilities, given.task), given.task.findings
    columns = _columns(request, images)  # a wrong one is told before another site is scored
    thresholds = _thresholds(request.thresholds, given, findings) if request.thresholds else None
    sites = _score_sites(request, given, console)
    with console.status("Resampling subjects"):
        arrays, resampling = (scored.targets, scored.scores, findings), (request.rounds, request.seed)
        scores = evaluate(*arrays, _groups(given.manifest, given.task), scored.subjects, *resampling)
        compared = [compare_site(name, findings, scored, site, thresholds, *resampling) for name, site in sites.items()]
        by_group = None
        if columns:
            few = request.min_group
            by_group = compare_groups(*arrays, columns, scored.subjects, thresholds, few, *resampling)
    scores = replace(scores, by_group=by_group, sites=tuple(compared))
    teams = published(given.task)
    reason = not_comparable(given.task, scores.images, _is_phantom(request.data, given.manifest)) if teams else None
    teams = None if reason else teams
    report.show(console, scores, teams, reason)
    paths: list[str] = []
    if request.out:
        names = report.write(scores, teams, request.out)
        folder = request.out.rpartition("/")[0]
        paths = [f"{folder}/{name}" if folder else name for name in names]
    line = f"Left in {', '.join(paths)}." if paths else ""
    score = scores.scores["map"]
    brief = f"mAP {cli.ranged(score, *scores.intervals['map'])} {line}".rstrip()
    flags: dict[str, Any] = {"flags": flags_of(scores.by_group)} if scores.by_group else {}
    output.result(line, paths, brief=brief, map=score, images=scores.images, **flags)
    return scores


def _given(request: EvaluateRequest, console: Console) -> Given:
    """A submission with its data, or an ensemble's own."""
    if (folder := _ensemble_folder(request.submission)) is not None:
        return _given_ensemble(request, folder)
    if request.external:
        raise UsageError("--external needs an ensemble to score the other site: give its directory, RUN/ensembles/X.")
    if request.data is None:
        raise UsageError("--data is missing: the cohort that was scored. Only an ensemble's directory knows its own.")
    manifest, notes = _read_cohort(request, request.data)
    _print(console, notes)
    return Given(request.submission, manifest, load_task(request.task, manifest.findings))


def _ensemble_folder(path: str) -> Store | None:
    from cxrlt_ray.runs.ensemble_record import FILE

    store, name = Store.holding(path)
    store = store if name == FILE else Store(path.rstrip("/") or path)
    return store if store.exists(FILE) else None


def _given_ensemble(request: EvaluateRequest, folder: Store) -> Given:
    from cxrlt_ray.ensembling.stored import run_of
    from cxrlt_ray.runs.ensemble_record import FILE, EnsembleRecord
    from cxrlt_ray.runs.store import read_run

    if wrong := {"data", "task", "format", "uncertain"} & request.model_fields_set:
        raise UsageError(f"--{min(wrong)} does not go with an ensemble's directory: its run knows data and task.")
    record = EnsembleRecord.parse(folder.read_json(FILE), f"{folder.uri}/{FILE}")
    if not folder.exists(submission.FILE):
        raise UsageError(f"{folder.uri} has no {submission.FILE}: its run had no images to score.")
    manifest = read_run(run_of(record, folder.uri)).manifest()
    return Given(f"{folder.uri}/{submission.FILE}", manifest, record.task, record, folder)


def _scored(images: Manifest, probabilities: np.ndarray, task: Task) -> ScoredImages:
    subjects, views = images.table["subject_id"].to_numpy(), images.table["view"].fillna("UNKNOWN").to_numpy(object)
    return ScoredImages(images.targets(task.findings), probabilities, subjects, views)


def _columns(request: EvaluateRequest, images: Manifest) -> dict[str, np.ndarray]:
    """The columns of groups; without cohort if sites are scored, since these are compared by cohort already."""
    names = [name for name in request.columns if not (name == COHORT and request.external)]
    return group_columns(images, names, request.groups)


def _thresholds(asked: str, given: Given, findings: tuple[str, ...]) -> np.ndarray:
    """The thresholds [C] that are asked for: a table's, or by an aim those that the ensemble keeps."""
    if asked.partition("=")[0] not in AIMS:
        return read_thresholds(asked, findings)
    if given.folder is None:
        raise UsageError(f"--thresholds {asked}: an ensemble keeps thresholds by aim: give its directory, or a table.")
    return thresholds_of(given.folder, Aim.parse(asked), findings)


def _score_sites(request: EvaluateRequest, given: Given, console: Console) -> dict[str, ScoredImages]:
    """Each other site's images, scored by the ensemble."""
    if not request.sites:
        return {}
    from cxrlt_ray.data.joining import read_site
    from cxrlt_ray.ensembling.new_images import score_site
    from cxrlt_ray.ensembling.stored import load, run_of
    from cxrlt_ray.runs.ensemble_record import FILE

    assert given.ensemble
    assert given.folder
    ensemble = load(f"{given.folder.uri}/{FILE}")
    known = replace(given.manifest, findings=given.task.findings)
    storage = request.storage or run_of(given.ensemble, given.folder.uri).uri.rpartition("/")[0]
    sites = {}
    for key, path in request.sites.items():
        images, notes = read_site(key, path, known, request.uncertain)
        _print(console, notes)
        name = str(images.cohorts.iloc[0])
        options = (name, images, storage, request.address, request.max_bad)
        scores = score_site(ensemble, given.folder, *options)
        if (calibration := ensemble.record.calibration) is not None:  # the submission's are calibrated
            scores = calibration.apply(scores, ensemble.findings)
        sites[name] = _scored(images, scores, given.task)
    return sites


def _read_cohort(request: EvaluateRequest, data: str) -> tuple[Manifest, tuple[str, ...]]:
    """The cohort as a sweep with this seed reads it; if it has no training images, as it is."""
    from cxrlt_ray.data.cohort import read_cohort

    options: dict[str, Any] = {"format": request.format, "task": request.task}
    options |= {"uncertain": request.uncertain, "seed": request.seed}
    cohort = read_cohort(data, **options, training=False)
    splits = set(cohort.manifest.table["split"].dropna())
    scored = request.split or load_task(request.task, cohort.manifest.findings).scored_split
    # a sweep carves what the data lacks from its training images
    if not splits or ("train" in splits and not {"val", scored} <= splits):
        cohort = read_cohort(data, **options)
    return cohort.manifest, cohort.notes


def _groups(manifest: Manifest, task: Task) -> list[str]:
    """Head, medium or tail by the main cohort's training labels; UNSEEN if a finding has none there."""
    targets = manifest.of_cohort(MAIN).of_split("train").targets(task.findings)
    labelled = np.any(targets >= 0, axis=0).tolist()
    return [group if known else UNSEEN for group, known in zip(rarity(targets), labelled, strict=True)]


def _is_phantom(data: str | None, manifest: Manifest) -> bool:
    roots = [manifest.root, *([data] if data else [])]
    return any(Store(root).exists(PHANTOM_MARKER) for root in roots)


def _print(console: Console, notes: Iterable[str]) -> None:
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)


main = cli.command(
    EvaluateRequest,
    run,
    """Score a submission whose labels are known, also by groups of patients; or an ensemble on another site.

    python -m cxrlt_ray.evaluate runs/RUN/ensembles/greedy/submission.csv --task task1 --data /data/mimic --by sex,age

    python -m cxrlt_ray.evaluate runs/RUN/ensembles/greedy --external nih=/data/nih
    """,
    many=("--external",),
)


if __name__ == "__main__":
    cli.run("evaluate")
