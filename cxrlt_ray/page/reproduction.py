"""Commands by which a run is made again, and those that come next; directories stand as DATA and STORAGE.

A page is passed on: it names no directory of the machine that it was made on. run.json has them.
"""

from __future__ import annotations

import shlex

from cxrlt_ray.data.asking import MINED, SCRUBBED
from cxrlt_ray.page.facts import StoredEnsemble
from cxrlt_ray.page.records import SectionFacts
from cxrlt_ray.runs.records import RunRecord
from cxrlt_ray.runs.store import DEFAULT_STORAGE, Run

OPTIONS = (
    "format",
    "folds",
    "ask",
    "holdout",
    "objectives",
    "promote",
    "views",
    "val_like",
    "uncertain",
    "seed",
    "max_bad",
    "sizes",
)
# options whose values are files
FILES = ("soft_targets", "reports", "reworded", "boxes", "scrub", "labels", "descriptions")
OF_LABELS = ("labels_mode", "labels_blank")
AS_READ = ("format",)  # options that are found by looking where they are not given: not repeated


class Command(SectionFacts):
    """A command line, and what it does."""

    what: str
    command: str


def next_commands(run: Run, ensemble: StoredEnsemble | None, left: int) -> tuple[Command, ...]:
    """What one would do next: go on, choose, score, look closer."""
    at, storage = ["--run", run.name], _storage(run)
    commands = []
    if left > 0:
        words = [_task(run.record), "--resume", "--name", run.name, *storage]
        commands.append(Command(what=f"Go on with the {left:,} trials that are left", command=_line("sweep", words)))
    if ensemble is None:
        words = ["--select", "greedy", *at, *storage]
        return (*commands, Command(what="Choose and weigh the best trials", command=_line("ensemble", words)))
    folder = f"STORAGE/{run.name}/ensembles/{ensemble.record.name}"
    if ensemble.store.exists("submission.csv"):
        commands.append(Command(what="Score the submission by finding", command=_line("evaluate", [folder])))
    if not ensemble.store.exists("explain.json") and run.record.asking is None:
        what = "See what each member brings and what more trials are worth"
        commands.append(Command(what=what, command=ensemble_command(run, ensemble, "--explain")))
    words = ["--ensemble", f"{folder}/ensemble.json", "--data", "NEW_IMAGES"]
    return (*commands, Command(what="Score new images", command=_line("predict", words)))


def making_commands(run: Run, ensemble: StoredEnsemble | None) -> tuple[Command, ...]:
    """The commands that made the run and its ensemble."""
    record = run.record
    words = [_task(record), *(["--data", "DATA"] if record.data else [])]
    space = record.space.rpartition("/")[2]
    words += ["--space", space] if space else []
    words += ["--trials", str(record.trials)]
    if record.epochs:  # stages have epochs of their own
        words += ["--epochs", str(record.epochs)]
    words += [word for name in OPTIONS for word in _option(record, name)]
    words += _asking_options(record)
    for name in sorted(record.cohorts):
        words += ["--cohort", f"{name}=DATA_OF_{name}"]
    for name in FILES:
        words += [f"--{name.replace('_', '-')}", name.upper()] if getattr(record, name) else []
    words += [word for name in OF_LABELS for word in _option(record, name)] if record.labels else []
    if record.quality != RunRecord.model_fields["quality"].default:
        words += ["--quality", str(record.quality or "lossless")]
    words += [word for name in record.warm_from for word in ("--warm-from", name)]
    words += ["--smoke"] if record.smoke else []
    commands = [Command(what="The sweep", command=_line("sweep", [*words, "--name", run.name, *_storage(run)]))]
    if ensemble is not None:
        words = ["--select", ensemble.record.name, "--run", run.name, *_storage(run)]
        commands.append(Command(what="The ensemble", command=_line("ensemble", words)))
    return tuple([*commands, Command(what="This page", command=_line("report", ["--run", run.name, *_storage(run)]))])


def ensemble_command(run: Run, ensemble: StoredEnsemble, *options: str) -> str:
    """The command that makes this run's ensemble anew with more options."""
    return _line("ensemble", ["--select", ensemble.record.name, "--run", run.name, *_storage(run), *options])


def _task(record: RunRecord) -> str:
    """The task as it was asked for; of a file its name alone."""
    return record.task_argument.rpartition("/")[2]


def _option(record: RunRecord, name: str) -> list[str]:
    value = getattr(record, name)
    if name in AS_READ or value in (None, RunRecord.model_fields[name].default):
        return []
    return [f"--{name.replace('_', '-')}", str(value)]


def _asking_options(record: RunRecord) -> list[str]:
    """Of findings that are asked for by text. Where mined labels choose there are no folds of findings to give."""
    track = ["--track", record.track] if record.track not in (None, SCRUBBED) else []
    if record.choose_by == MINED:
        return [*track, "--choose-by", MINED]
    return [*track, "--finding-folds", str(record.finding_folds)] if record.finding_folds else track


def _storage(run: Run) -> list[str]:
    folder = run.store.uri.rpartition("/")[0]
    return [] if folder == DEFAULT_STORAGE else ["--storage", "STORAGE"]


def _line(command: str, words: list[str]) -> str:
    return f"python -m cxrlt_ray.{command} {shlex.join(words)}"
