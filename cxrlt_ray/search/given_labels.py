"""`--labels`: a table of labels by study, as a sweep takes it and as its record keeps it."""

from __future__ import annotations

from cxrlt_ray.data.given_labels import GivenLabels
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.storage.provenance import provenance_of


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


def record_of_labels(labels: GivenLabels | None) -> dict[str, str]:
    """What a run's record keeps of its labels."""
    if labels is None:
        return {}
    return {"labels": labels.provenance, "labels_mode": labels.mode, "labels_blank": labels.blank}
