"""`python -m cxrlt_ray.evaluate SUBMISSION.csv --task task1 --data DIR`: what a submission is worth.

The challenge's scores (evaluation/scores.py), beside the paper's teams where the images are theirs. The challenge ranks
by macro mAP, ties by macro AUROC. 78,946 images of 40 findings take about 10 s on 2 cores, after the cohort's reading.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cxrlt_ray import cli, output
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.tasks import Task, load_task, rarity
from cxrlt_ray.ensembling import submission
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.published import not_comparable, published
from cxrlt_ray.evaluation.request import EvaluateRequest
from cxrlt_ray.evaluation.scores import UNSEEN, Scores, evaluate
from cxrlt_ray.privacy import PHANTOM_MARKER
from cxrlt_ray.reporting import scores as report
from cxrlt_ray.storage import Store

__all__ = ["EvaluateRequest", "main", "run"]


def run(request: EvaluateRequest) -> Scores:
    """Score a submission where the labels are known; print the scores, and leave them in `out`.

        from cxrlt_ray import evaluate
        scores = evaluate.run(evaluate.EvaluateRequest(submission="submission.csv", data="/data/mimic"))
        scores.scores["map"], scores.intervals["map"]

    Raises UsageError for a split without images, CxrltError with every fault of the submission.
    """
    console = cli.console()
    table = submission.read(request.submission)
    manifest, notes = _read_cohort(request)
    for note in [*table.attrs["notes"], *notes]:
        console.print(note, markup=False, soft_wrap=True)
    task = load_task(request.task, manifest.findings)
    split = _of_split(request, manifest, task)
    images, scaled = submission.aligned(table, task, split, request.submission, request.scores)
    for note in scaled.notes:
        console.print(f"Note: {note}", markup=False, soft_wrap=True)
    with console.status("Resampling subjects"):
        scores = evaluate(
            images.targets(task.findings),
            scaled.probabilities,
            task.findings,
            _groups(manifest, task),
            images.table["subject_id"].to_numpy(),
            request.rounds,
            request.seed,
        )
    teams = published(task)
    reason = not_comparable(task, scores.images, _is_phantom(request.data, manifest)) if teams else None
    teams = None if reason else teams
    report.show(console, scores, teams, reason)
    if request.out:
        report.write(scores, teams, request.out)
    line = f"Left in {request.out}." if request.out else ""
    score, paths = scores.scores["map"], [request.out] if request.out else []
    brief = f"mAP {cli.ranged(score, *scores.intervals['map'])} {line}".rstrip()
    output.result(line, paths, brief=brief, map=score, images=scores.images)
    return scores


def _read_cohort(request: EvaluateRequest) -> tuple[Manifest, tuple[str, ...]]:
    """The cohort as a sweep with that seed reads it; where it has no training images, as it is."""
    from cxrlt_ray.data.cohort import read_cohort

    options: dict[str, Any] = {"format": request.format, "task": request.task}
    options |= {"uncertain": request.uncertain, "seed": request.seed}
    cohort = read_cohort(request.data, **options, training=False)
    splits = set(cohort.manifest.table["split"].dropna())
    scored = request.split or load_task(request.task, cohort.manifest.findings).scored_split
    # a sweep carves what the data lacks from its training images
    if not splits or ("train" in splits and not {"val", scored} <= splits):
        cohort = read_cohort(request.data, **options)
    return cohort.manifest, cohort.notes


def _of_split(request: EvaluateRequest, manifest: Manifest, task: Task) -> Manifest:
    """The images that were to be scored."""
    split = request.split or task.scored_split
    images = manifest.of_split(split)
    if images.table.empty:
        splits = ", ".join(manifest.table["split"].dropna().unique()) or "none"
        raise UsageError(f"{request.data} has no images of split {split}: give --split, one of {splits}.")
    return images


def _groups(manifest: Manifest, task: Task) -> list[str]:
    """Head, medium or tail by training counts; UNSEEN where a finding is not labelled in training."""
    targets = manifest.of_split("train").targets(task.findings)
    labelled = np.any(targets >= 0, axis=0).tolist()
    return [group if known else UNSEEN for group, known in zip(rarity(targets), labelled, strict=True)]


def _is_phantom(data: str, manifest: Manifest) -> bool:
    return any(Store(root).exists(PHANTOM_MARKER) for root in (data, manifest.root))


main = cli.command(
    EvaluateRequest,
    run,
    """Score a submission where the labels are known.

    python -m cxrlt_ray.evaluate runs/RUN/ensembles/greedy/submission.csv --task task1 --data /data/mimic
    """,
)


if __name__ == "__main__":
    cli.run("evaluate")
