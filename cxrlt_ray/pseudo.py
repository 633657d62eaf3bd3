"""`python -m cxrlt_ray.pseudo RUN/ensembles/X`: an ensemble labels what nobody labelled, for a student to learn.

The teacher scores unlabelled cells of the run's training images and of other cohorts, its scores are calibrated on
predictions for images that it did not train on, and `sweep --soft-targets pseudo/KEY.parquet` trains the student.
"""

from __future__ import annotations

import shlex

from cxrlt_ray import cli
from cxrlt_ray.data.joining import sweep_options
from cxrlt_ray.data.soft_targets import SoftTargets
from cxrlt_ray.data.teacher import Teacher
from cxrlt_ray.ensembling.pseudo_labels import few_positives
from cxrlt_ray.ensembling.pseudo_request import PseudoRequest
from cxrlt_ray.ensembling.teacher import EnsembleTeacher, teacher_of
from cxrlt_ray.ensembling.teaching import labelled_by, record_of, scores_of
from cxrlt_ray.ensembling.unlabelled import pseudo_store, unlabelled_images
from cxrlt_ray.reporting import pseudo_labels as report
from cxrlt_ray.runs.records import TRANSDUCTIVE
from cxrlt_ray.runs.store import DEFAULT_STORAGE
from cxrlt_ray.storage import Store

__all__ = ["PseudoRequest", "main", "run"]


def run(request: PseudoRequest) -> SoftTargets | None:
    """Write pseudo-labels to `out`/KEY.parquet and their record to KEY.json; returns None if only a plan is requested.

        from cxrlt_ray import pseudo
        pseudo.run(pseudo.PseudoRequest(ensemble="runs/RUN/ensembles/greedy", cohort=["nih=/data/nih"]))

    Raises UsageError for an ensemble that cannot teach and if nothing is unlabelled, CxrltError if its run is gone or
    images cannot be read.
    """
    teacher = teacher_of(request.ensemble, request.weights)
    images = unlabelled_images(teacher, request)
    if request.plan:
        trials = [trial.record for trial in teacher.ensemble.trials]
        report.print_plan(images, trials, teacher.teachers, teacher.ensemble.record.sizes)
        return None
    report.print_images(images)
    store, validation = pseudo_store(request.out), teacher.on_validation()
    record = record_of(request, teacher, images, validation)
    scores = scores_of(teacher, images, store, request.max_bad, request.address, cli.say)
    soft, judged = labelled_by(request, teacher, images, scores, validation, record)
    soft.write(store, f"{record.key}.parquet")
    judged.write(store, f"{record.key}.json")
    report.print_report(judged)
    if rare := few_positives(validation, teacher.findings):
        print(f"Fewer than 2 positive validation subjects, calibrated nearly as all findings are: {', '.join(rare)}")
    _say_next(request, teacher, record)
    return soft


def _say_next(request: PseudoRequest, teacher: EnsembleTeacher, record: Teacher) -> None:
    """Print the files written, and the command that trains the student."""
    out, swept = request.out.rstrip("/"), teacher.run.record
    print(f"Left in {out}: {record.key}.parquet, {record.key}.json ({record.provenance})")
    if record.transductive:
        print(TRANSDUCTIVE)
    options = f" --data {shlex.quote(swept.data or '')}" + sweep_options(request.cohorts or swept.cohorts)
    for option in ("folds", "holdout", "seed", "uncertain", "views", "val_like"):
        if (value := getattr(swept, option)) != type(swept).model_fields[option].default:
            options += f" --{option.replace('_', '-')} {value if isinstance(value, str) else f'{value:g}'}"
    if swept.labels is not None:  # the run does not keep where they lie
        options += f" --labels LABELS --labels-mode {swept.labels_mode} --labels-blank {swept.labels_blank}"
    storage = teacher.run.store.absolute().uri.rpartition("/")[0]
    options += f" --storage {shlex.quote(storage)}" if storage != Store(DEFAULT_STORAGE).absolute().uri else ""
    if record.weights == "chosen":
        print("Validation chose this teacher's weights: a student that the same subjects judge is refused")
        return
    print(
        f"Next: python -m cxrlt_ray.sweep {shlex.quote(swept.task_argument)} --space noisy_student"
        f" --soft-targets {shlex.quote(f'{out}/{record.key}.parquet')}{options}"
    )


main = cli.command(
    PseudoRequest,
    run,
    """Label with an ensemble what nobody labelled, for a student to learn (Noisy Student).

    python -m cxrlt_ray.pseudo runs/RUN/ensembles/greedy --cohort nih=/data/nih
    python -m cxrlt_ray.pseudo runs/RUN/ensembles/greedy --smoke
    """,
    many=("--cohort",),
)


if __name__ == "__main__":
    cli.run("pseudo")
