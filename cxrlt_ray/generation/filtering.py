"""Which generated images are kept: those that show what they should, copy no patient's image, up to a quota a set.

Reasons to drop one, in this order: it cannot be read; it is a near-copy of a training image (copies.py); the teacher
does not see in it what was asked for, better than in `agreement` of the real images without it (teacher.py); its set
has its quota. Of more images than the quota the first are kept, not those that the teacher likes best: they would
be the most alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation.metrics import numbered
from cxrlt_ray.generation.conditions import members
from cxrlt_ray.generation.records import FindingTally
from cxrlt_ray.generation.teacher import RealScores, auroc_interval

UNREADABLE, COPY, DISAGREES, QUOTA = "unreadable", "near-copy", "teacher disagrees", "over the quota"
REASONS = (UNREADABLE, COPY, DISAGREES, QUOTA)


@dataclass(frozen=True)
class Judged:
    """What is known of N images: the set of each, str [N], and of what was not looked at, None.

    readable: bool [N]. copies: bool [N]. agrees: bool [N].
    """

    of: np.ndarray
    readable: np.ndarray
    copies: np.ndarray | None = None
    agrees: np.ndarray | None = None


def reasons(judged: Judged, quota: int | None) -> np.ndarray:
    """Why each image is dropped, str [N]; "" for one that is kept."""
    why = np.full(len(judged.of), "", object)
    why[~judged.readable] = UNREADABLE
    if judged.copies is not None:
        why[(why == "") & judged.copies] = COPY
    if judged.agrees is not None:
        why[(why == "") & ~judged.agrees] = DISAGREES
    if quota is not None:
        for text in np.unique(judged.of.astype(str)):
            rows = np.flatnonzero((judged.of == text) & (why == ""))
            why[rows[quota:]] = QUOTA
    return why


def agreement(
    of: np.ndarray,
    scores: np.ndarray,
    real: RealScores,
    teacher_findings: Sequence[str],
    findings: Sequence[str],
    share: float,
) -> np.ndarray:
    """Which images the teacher agrees with, bool [N]: every finding of an image's set is above its threshold.

    of: str [N]. scores: the teacher's, float [N, C] of `teacher_findings`. findings: the generator's. Raises UsageError
    for a teacher that does not know a finding of a set, or has no real image without it.
    """
    agrees = np.ones(len(of), bool)
    for text in np.unique(of.astype(str)):
        rows = of == text
        for column in members(text, findings):
            name = findings[column]
            if name not in teacher_findings:
                raise UsageError(
                    f"--teacher does not predict {name}, for which images were drawn: give one that does, or leave the "
                    "set out of `generate sample --findings`."
                )
            own = list(teacher_findings).index(name)
            threshold = real.threshold(own, share)
            if threshold != threshold:
                raise UsageError(f"--teacher has no image without {name} to compare with: give another.")
            agrees[rows] &= scores[rows, own] > threshold
    return agrees


def counted(
    tallies: dict[str, FindingTally],
    of: np.ndarray,
    why: np.ndarray,
    targets: np.ndarray,
    findings: Sequence[str],
    teacher: tuple[np.ndarray, RealScores, Sequence[str]] | None,
    source: np.ndarray,
) -> dict[str, FindingTally]:
    """The tallies with what became of the images, and a teacher's AUROC of single findings, generated and real.

    targets: what images were to show, int8 [N, C]. teacher: its scores [N, T], those of real images, its findings.
    source: the subjects that images descend from, by which the interval of generated images is drawn.
    """
    result = {}
    for text, tally in tallies.items():
        rows = of == text
        dropped = {reason: int((why[rows] == reason).sum()) for reason in REASONS}
        changes: dict[str, object] = {
            "drawn": int(rows.sum()),
            "kept": int((why[rows] == "").sum()),
            "dropped": {reason: count for reason, count in dropped.items() if count},
        }
        columns = members(text, findings)
        if teacher is not None and len(columns) == 1:
            scores, real, names = teacher
            own = list(names).index(findings[columns[0]])
            changes["auroc"] = auroc_interval(targets[:, columns[0]], scores[:, own], numbered(source))
            changes["auroc_real"] = auroc_interval(real.targets[:, own], real.scores[:, own], numbered(real.subject))
        result[text] = tally.model_copy(update=changes)
    return result
