"""Weights with which the trials of a run begin that asks for findings by text: what they may have learnt before.

`init_from`, or a `checkpoint` in a run's folder, brings all that its trial learnt: labels of findings that this run
hides would be in every model, and neither its track nor its folds would be what they say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cxrlt_ray.data.asking import CORPUS, LABELLED, MINED, OUTSIDE_LABELS, SCRUBBED, Asking
from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.registry import find_objective
from cxrlt_ray.runs.records import RunRecord, TrialRecord
from cxrlt_ray.runs.store import RECORD
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from cxrlt_ray.models import ModelSpec

WEIGHTS, FOLD = "/model.safetensors", "fold-"


def check_begun_from(specs: Iterable[ModelSpec], asking: Asking) -> None:
    """Raises UsageError for weights of a trial that learnt labels, or on track scrubbed texts, that this run hides."""
    for source in dict.fromkeys(spec.checkpoint for spec in specs if spec.pretrained and spec.checkpoint):
        _check_of_a_trial(source)
        for place, record in _trials_behind(source):
            needs = [find_objective(stage.objective).needs for stage in record.config.staged()] if record.config else []
            learnt = any(need.labels or need.soft_targets or need.pseudo_labels for need in needs)
            known = _known(place, record, asking) if learnt else []
            if known:
                raise UsageError(
                    f"weights of {place} have learnt labels of {', '.join(known[:5])}, which this run hides from its "
                    "models to ask for them by text: begin from weights that have learnt none (init_from, checkpoint)."
                )
            read = any(need.texts or (need.rows and _had_reports(place)) for need in needs)
            if asking.track == SCRUBBED and read:
                raise UsageError(
                    f"weights of {place} have read reports: on track {SCRUBBED} no model has read what names a finding "
                    "that is hidden from it. Pretrain in a stage of this run, or give --track reports."
                )


def _check_of_a_trial(source: str) -> None:
    """Raises UsageError for the weights of a run's stage, beside which no record says what they have learnt."""
    run, _, kept = source.removesuffix(WEIGHTS).rpartition("/stages/")
    if run and "/" not in kept and Store(run).exists("run.json"):
        raise UsageError(
            f"weights of {run}/stages do not say what they have learnt, which may be labels that this run hides: begin "
            f"from a trial of that run (init_from: {run.rpartition('/')[2]}/T0000)."
        )


def _known(place: str, record: TrialRecord, asking: Asking) -> list[str]:
    """The findings whose labels a checkpoint has learnt and may not have."""
    from cxrlt_ray.text.descriptions import own_labels

    run = Store(place.rpartition("/trials/")[0] or ".")
    before = RunRecord.read(run, "run.json").asking if run.exists("run.json") else None
    return list(own_labels(_learnt(place, record, before), _hidden(before, asking)))


def _hidden(before: Asking | None, asking: Asking) -> tuple[str, ...]:
    """The findings whose labels a checkpoint may not have learnt. before: what its own run asked for.

    On track outside its labels of asked findings may be other cohorts', on track mined those of a run on that track.
    """
    of_same = asking.track == OUTSIDE_LABELS or (before is not None and before.track == asking.track == MINED)
    return asking.predicted[: -len(asking.asked)] if of_same else asking.predicted


def _trials_behind(source: str) -> Iterator[tuple[str, TrialRecord]]:
    """The checkpoint's folder and its trial, the one that this began from, and so on; none for other weights."""
    while source.endswith(WEIGHTS):
        place = source.removesuffix(WEIGHTS)
        store = Store(place.rpartition("/")[0] or ".")
        if not store.exists(RECORD):
            return
        record = TrialRecord.read(store, RECORD)
        yield place, record
        source = (record.config.checkpoint if record.config else None) or ""


def _had_reports(place: str) -> bool:
    """Whether the run of a checkpoint's folder, RUN/trials/NAME/fold-K, has reports."""
    return Store(place.rsplit("/", 3)[0]).exists(CORPUS)


def _learnt(place: str, record: TrialRecord, before: Asking | None) -> list[str]:
    """The findings whose labels a checkpoint has learnt, its own fold's among them on the tracks of LABELLED."""
    name, trained = place.rpartition("/")[2], record.trained_findings or record.findings
    if before is None or before.track in LABELLED:
        return list(trained)
    fold = int(name.removeprefix(FOLD)) if name.startswith(FOLD) else before.folds
    return [finding for finding in trained if finding not in before.hidden(fold)]
