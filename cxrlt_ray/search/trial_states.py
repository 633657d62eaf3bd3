"""How a trial of a search ends, is retried and is opened again: the states that its record goes through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cxrlt_ray.runs import verdict
from cxrlt_ray.runs.records import FAILED, FINISHED, PRUNED, RUNNING, Retraining, Retry, State
from cxrlt_ray.runs.store import Run, Trial
from cxrlt_ray.storage import Store
from cxrlt_ray.training import resume

PREDICTIONS = "predictions"
RETRIES = "retries.json"  # beside a trial's record, until the trial ends


def trial_name(number: int) -> str:
    """The name of the search's trial `number`."""
    return f"T{number:04d}"


def trial_number(trial: Trial) -> int:
    """The search's number of a trial."""
    return int(trial.name.removeprefix("T"))


def trial_seed(trials: Iterable[Trial], number: int, seed: int) -> tuple[int, str]:
    """The seed that trial `number` of `trials` is trained with, and the name of the first trial of its settings, or "".

    It is the run's `seed`, plus 1 for each earlier trial of these settings: with one seed for all a repeat would cost
    as much and end with the same weights. A trial that was begun keeps the seed that it has.
    """
    by_number = {trial_number(trial): trial for trial in trials}
    own = by_number[number].record
    equal = [by_number[k].name for k in sorted(by_number) if k < number and by_number[k].record.params == own.params]
    first = equal[0] if equal else ""
    return (seed + len(equal) if own.config is None else own.config.seed), first


def settle_trial(run: Run, number: int, error: bool = False, cut: bool = False) -> Trial:
    """Write the last state of a trial that Tune has ended to its record, with the reasons of its retries.

    error: it ended by a fault. cut: a time budget ended it: what it has stands as if it had been pruned, unless nothing
    but test-time augmentation or, with folds, a refit is missing.
    """
    trial = run.trial(trial_name(number))
    record = trial.record.model_copy(update={"retries": retries_of(trial)})
    if by_sweep := record.state == RUNNING:
        judged = bool(record.epochs_of()) and not error
        # Tune stops a trial at its last report, before the trial writes its own last state
        whole = judged and (is_whole if cut else has_no_more_to_do)(trial, run.record.models)
        record.state = FINISHED if whole else PRUNED if judged else FAILED
        if whole and cut and record.config is not None and record.config.refit:
            record.reason = "the time budget ended before its refit"
    if record.state == FAILED and record.reason is None:
        record.reason = record.retries[-1].reason if record.retries else "it was stopped before an epoch was done"
    if by_sweep:  # its process may be in an epoch still
        verdict.declare(trial.store, record)
    trial.write(record)
    if record.state != FAILED or record.own_fault:  # one that its surroundings ended goes on when the run is resumed
        resume.forget(trial.store)
    if record.retries:
        trial.store.delete(RETRIES)
    return Trial(trial.store, record)


def has_ended(trial: Trial) -> bool:
    """Whether a trial stays as it is when its run is resumed: one that its surroundings ended goes on."""
    return trial.state != RUNNING and (trial.state != FAILED or trial.record.own_fault)


def reopen_trial(trial: Trial) -> None:
    """Let a trial go on that failed by a fault of its surroundings, or whose files are damaged.

    One that had ended well is trained again as far as it was (TrialRecord.retraining): what it left is not to be
    trusted.
    """
    changes: dict[str, Any] = {"state": RUNNING, "reason": None, "ended": None}
    if trial.state in (FINISHED, PRUNED):
        state: State = FINISHED if trial.state == FINISHED else PRUNED
        changes["retraining"] = Retraining(state=state, curve=tuple(learning_curve(trial)))
        changes |= {"epochs": [], "score": None}
        resume.forget(trial.store)
        for name in trial.store.list(PREDICTIONS):  # of the old weights, in whatever split
            trial.store.delete(f"{PREDICTIONS}/{name}")
    verdict.withdraw(trial.store)
    trial.write(trial.record.model_copy(update=changes))


def retries_of(trial: Trial) -> list[Retry]:
    """Why a trial was begun anew, each time."""
    recorded = list(trial.record.retries)
    return recorded + [retry for retry in _noted_retries(trial.store) if retry not in recorded]


def note_retry(store: Store, reason: str, at: float) -> None:
    """Write why a trial is begun anew to a file of its own: the trial's record is for its process to write."""
    noted = [*_noted_retries(store), Retry(reason=reason, at=at)]
    store.write_json(RETRIES, [retry.model_dump() for retry in noted])


def _noted_retries(store: Store) -> list[Retry]:
    return [Retry(**retry) for retry in store.read_json(RETRIES)] if store.exists(RETRIES) else []


def has_no_more_to_do(trial: Trial, models: int) -> bool:
    """Whether nothing follows the epochs of a trial's record: no epoch, fold, refit or test-time augmentation.

    models: that the trial trains on folds; 1 without folds.
    """
    config = trial.record.config
    return config is not None and config.tta == "none" and has_all_epochs(trial, models)


def is_whole(trial: Trial, models: int) -> bool:
    """Whether a trial that was cut has the predictions that its epochs are for: of all folds, or of its last epoch."""
    return trial.record.score is not None if models > 1 else has_all_epochs(trial, models)


def has_all_epochs(trial: Trial, models: int) -> bool:
    """Whether a trial's record has the last epoch of the last model that it trains."""
    epochs, config = trial.record.epochs_of(), trial.record.config
    if not epochs or models > 1 or config is None or config.refit:
        return False
    stages, last = config.staged(), epochs[-1]
    if last.epoch + 1 == config.total_epochs:
        return True
    end = stages[-1]
    return last.stage + 1 == len(stages) and trial.record.out_of_patience(
        0, last.stage, end.patience, end.patience_gain
    )


def learning_curve(trial: Trial) -> Iterator[tuple[int, float]]:
    """What the trial reported after each epoch that it trained: the epochs done, and its stage's best score so far.

    Without stages whose objective is judged by another metric than the trial's.
    """
    record = trial.record
    if record.retraining is not None:
        yield from record.retraining.curve
        return
    for stage in dict.fromkeys(epoch.stage for epoch in record.epochs_of()):
        if record.metric_of(stage) != record.metric:
            continue
        for epoch in record.epochs_of(stage=stage):
            score = record.best_of(0, stage, last=epoch.epoch).score
            yield epoch.epoch + 1, float("nan") if score is None else score
