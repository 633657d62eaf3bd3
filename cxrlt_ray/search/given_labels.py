"""`--labels`: a table of labels by study, as a sweep takes it and as its record keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from cxrlt_ray.data.given_labels import GivenLabels
from cxrlt_ray.data.two_labellings import TwoLabellings
from cxrlt_ray.evaluation.confusion import Resampled, counts
from cxrlt_ray.evaluation.estimate import Estimate
from cxrlt_ray.runs.label_agreement import AgreementRate, LabelAgreement
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.storage.finite import finite
from cxrlt_ray.storage.provenance import provenance_of

ROUNDS = 300  # of the bootstrap, by which intervals are made


def labels_of(request: SweepRequest) -> GivenLabels | None:
    """The labels that are given. Raises UsageError where the file cannot be read, is no table, or has no finding."""
    if request.labels is None:
        return None
    from cxrlt_ray.labelling.matching import read_label_table

    provenance = provenance_of(request.labels, "--labels")
    read = read_label_table(request.labels)
    for note in read.notes:
        print(f"Labels: {request.labels}: {note}")
    return GivenLabels(read.table, provenance, request.labels_mode, request.labels_blank, request.uncertain)


def record_of_labels(labels: GivenLabels | None, labellings: TwoLabellings | None) -> dict[str, Any]:
    """What a run's record keeps of its labels, and of how far they agree with the cohort's own."""
    if labels is None:
        return {}
    agreement = () if labellings is None else agreement_of(labellings)
    record = {"labels": labels.provenance, "labels_mode": labels.mode, "labels_blank": labels.blank}
    return {**record, "label_agreement": agreement}


def agreement_of(labellings: TwoLabellings) -> tuple[LabelAgreement, ...]:
    """The agreement of two labellings by finding, on the studies that are scored and on the others."""
    return tuple(row for scored in (True, False) for row in _of_part(labellings.part(scored), scored))


def _of_part(part: TwoLabellings, scored: bool) -> Iterator[LabelAgreement]:
    if not len(part.own):
        return
    table = counts(part.own, part.given)
    every = np.ones(len(part.findings), bool)
    rates = Resampled.of(table, part.subjects, every, ROUNDS, seed=0).rates()
    for c, (finding, (tp, fp, fn, tn)) in enumerate(zip(part.findings, table.sum(axis=1).T.astype(int), strict=True)):
        if not tp + fp + fn + tn:
            continue
        yield LabelAgreement(
            finding=finding,
            scored=scored,
            studies=tp + fp + fn + tn,
            own=tp + fn,
            given=tp + fp,
            both=tp,
            f1=_rate(rates.intervals["f1"][c]),
            kappa=_rate(rates.intervals["kappa"][c]),
        )


def _rate(estimate: Estimate) -> AgreementRate:
    return AgreementRate.model_validate(finite(dataclasses.asdict(estimate)))
