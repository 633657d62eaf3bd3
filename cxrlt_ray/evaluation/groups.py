"""Whether a model serves all groups of patients alike: scores by group, the gaps between groups, and tests.

Each group is compared with all others whose group is known, for each finding and on the mean of findings, by what
neither prevalence nor size moves: AUROC, FNR at one threshold a finding, and calibration (parts.py). Where there are
two groups that is one comparison. All tests of a report are corrected together by Holm's method, not by Benjamini and
Hochberg's: a flag says that a model treats patients differently, and of a fair model's report it should be absent with
95 % chance, whatever the dependence of findings and groups; a share of false flags is for lists to be looked through.

Groups of fewer than `min_group` subjects are not shown, nor is a finding with fewer than FEWEST positive or negative
subjects in a group. Images whose group is not known are shown as a group of their own, which is in no gap and no test.
5 columns of 5 groups, 78,946 images of 40 findings and 1,000 rounds are some 60 passes of the bootstrap (metrics.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.age_bands import UNKNOWN
from cxrlt_ray.evaluation.corrected import holm
from cxrlt_ray.evaluation.estimate import Estimate
from cxrlt_ray.evaluation.parts import METRICS, SCORES, TESTED, Images, Part, best_f1_thresholds, difference

if TYPE_CHECKING:
    import pandas as pd

MEAN = "mean"  # of findings
MIN_GROUP = 20  # subjects
FEWEST = 5  # positive subjects of a finding in a group, and negative ones
LEVEL = 0.05  # of the corrected tests
GAPS = ("ap_even", "auroc", "fnr", "bias")  # ap itself differs with prevalence
WORSE = {"auroc": -1, "fnr": 1}  # the sign of a difference that is to a group's disadvantage; bias has none


@dataclass(frozen=True)
class Cell:
    """A finding in a group: counts of images, prevalence, ECE, and METRICS' scores; or several: sums and means."""

    positives: int
    labelled: int
    prevalence: float
    ece: float
    scores: dict[str, Estimate]


@dataclass(frozen=True)
class GroupScores:
    """A group that is shown. cells: [C], None where a finding is suppressed.

    mean: over the findings that have a cell in every known group of the column; None where there is none.
    """

    by: str
    group: str
    images: int
    subjects: int
    cells: tuple[Cell | None, ...]
    mean: Cell | None


@dataclass(frozen=True)
class Contrast:
    """A group less all others of its column (`other` names the only one), on a finding or their MEAN.

    p: of no difference, two-sided; corrected: for all tests of the report; nan where it was not tested.
    """

    by: str
    group: str
    other: str | None
    finding: str
    metric: str
    difference: Estimate
    p: float
    corrected: float = float("nan")

    @property
    def flagged(self) -> bool:
        """Whether there is a difference, with all tests of the report counted."""
        return bool(self.corrected < LEVEL)

    @property
    def worse(self) -> str | None:
        """The group at a disadvantage: `group`, `other`, or "the others"; None for bias, which has two bad sides."""
        if self.metric not in WORSE or np.isnan(self.difference.value):
            return None
        return self.group if self.difference.value * WORSE[self.metric] > 0 else self.other or "the others"


@dataclass(frozen=True)
class Gap:
    """The largest less the smallest of the known groups, on a finding or their MEAN.

    difference: of these two groups, with its interval. chance: the gap that so many groups of these sizes would have
    on average if all were alike.
    """

    by: str
    finding: str
    metric: str
    largest: str
    smallest: str
    difference: Estimate
    chance: float


@dataclass(frozen=True)
class GroupReport:
    """Scores by group.

    findings, thresholds: [C]; chosen_here: whether thresholds have the best F1 on these very images. common: column ->
    the number of findings that its means are of. suppressed: column -> how many groups are not shown for their size.
    contrasts: in the order of columns, groups, findings (MEAN first).
    """

    findings: tuple[str, ...]
    thresholds: tuple[float, ...]
    min_group: int
    images: int
    subjects: int
    common: dict[str, int]
    suppressed: dict[str, int]
    groups: tuple[GroupScores, ...]
    contrasts: tuple[Contrast, ...]
    gaps: tuple[Gap, ...]
    chosen_here: bool = False

    @property
    def tests(self) -> int:
        """How many tests the correction is for."""
        return sum(not np.isnan(contrast.p) for contrast in self.contrasts)

    @property
    def flags(self) -> tuple[Contrast, ...]:
        """The differences that stand after correction, the surest first."""
        return tuple(sorted((c for c in self.contrasts if c.flagged), key=lambda c: (c.corrected, c.p)))

    def frame(self) -> pd.DataFrame:
        """A row a group and finding (and `mean`): counts, scores and bounds, and the contrasts; null where suppressed.

        Columns: by, group, finding, images, subjects, positives, labelled, prevalence, ece; of METRICS NAME, NAME_low,
        NAME_high; of TESTED NAME_difference, _difference_low, _difference_high, NAME_p, NAME_corrected.
        """
        import pandas as pd

        of = {(c.by, c.group, c.finding, c.metric): c for c in self.contrasts}
        return pd.DataFrame([row for group in self.groups for row in self._rows(group, of)])

    def _rows(
        self, group: GroupScores, of: Mapping[tuple[str, str, str, str], Contrast]
    ) -> Iterator[dict[str, str | int | float | None]]:
        for finding, cell in zip((MEAN, *self.findings), (group.mean, *group.cells), strict=True):
            row: dict[str, str | int | float | None] = {"by": group.by, "group": group.group, "finding": finding}
            row |= {"images": group.images, "subjects": group.subjects}
            for name in ("positives", "labelled", "prevalence", "ece"):
                row[name] = None if cell is None else getattr(cell, name)
            for metric in METRICS:
                estimate = None if cell is None else cell.scores[metric]
                row |= _bounds(metric, estimate)
            for metric in TESTED:
                contrast = of.get((group.by, group.group, finding, metric))
                row |= _bounds(f"{metric}_difference", contrast.difference if contrast else None)
                row |= {f"{metric}_{key}": getattr(contrast, key, None) for key in ("p", "corrected")}
            yield row


def compare_groups(
    targets: np.ndarray,
    scores: np.ndarray,
    findings: Sequence[str],
    columns: Mapping[str, np.ndarray],
    subjects: np.ndarray,
    thresholds: np.ndarray | None = None,
    min_group: int = MIN_GROUP,
    rounds: int = 1000,
    seed: int = 0,
) -> GroupReport:
    """Scores by group, gaps and corrected tests.

    targets: int8 [N, C], 1, 0 or -1 (not labelled). scores: probabilities [N, C]. columns: name -> group of each image,
    str [N], UNKNOWN where it is not known. subjects: [N], drawn whole in each of `rounds` of bootstrap. thresholds:
    [C], for FNR; those with the best F1 over all images unless given.
    """
    chosen_here = thresholds is None
    thresholds = best_f1_thresholds(targets, scores) if thresholds is None else np.asarray(thresholds, float)
    images = Images.of(targets, scores, subjects, thresholds, None, rounds, seed)
    parts = {name: _Column.of(images, name, np.asarray(groups), min_group) for name, groups in columns.items()}
    contrasts = [contrast for column in parts.values() for contrast in column.contrasts(findings, min_group)]
    corrected = holm(np.array([contrast.p for contrast in contrasts]))
    return GroupReport(
        findings=tuple(findings),
        thresholds=tuple(thresholds.tolist()),
        min_group=min_group,
        images=len(targets),
        subjects=len(np.unique(images.subject)),
        common={name: int(column.common.sum()) for name, column in parts.items()},
        suppressed={name: column.suppressed for name, column in parts.items()},
        groups=tuple(scored for column in parts.values() for scored in column.scores()),
        contrasts=tuple(replace(c, corrected=float(p)) for c, p in zip(contrasts, corrected, strict=True)),
        gaps=tuple(gap for column in parts.values() for gap in column.gaps(findings)),
        chosen_here=chosen_here,
    )


def enough(part: Part, min_group: int) -> np.ndarray:
    """The findings that may be shown of a part, a mask [C]."""
    counts = np.minimum(part.positive_subjects, part.negative_subjects)
    return (counts >= FEWEST) & (part.subjects >= min_group)


@dataclass(frozen=True)
class _Column:
    """The shown groups of a column. shown: group -> mask of findings [C]. common: of all known groups [C]."""

    images: Images
    name: str
    groups: np.ndarray
    parts: dict[str, Part]
    shown: dict[str, np.ndarray]
    common: np.ndarray
    suppressed: int

    @classmethod
    def of(cls, images: Images, name: str, groups: np.ndarray, min_group: int) -> _Column:
        counts = {str(group): len(np.unique(images.subject[groups == group])) for group in np.unique(groups)}
        large = [group for group, count in counts.items() if count >= min_group]
        large.sort(key=lambda group: (group == UNKNOWN, group))
        parts = {group: images.part(groups == group) for group in large}
        shown = {group: enough(part, min_group) for group, part in parts.items()}
        known = [shown[group] for group in large if group != UNKNOWN]
        common = np.all(known, axis=0) if known else np.zeros(images.targets.shape[1], bool)
        return cls(images, name, groups, parts, shown, common, len(counts) - len(large))

    @property
    def known(self) -> list[str]:
        return [group for group in self.parts if group != UNKNOWN]

    def scores(self) -> Iterator[GroupScores]:
        for group, part in self.parts.items():
            cells = [_cell(part, c) if shown else None for c, shown in enumerate(self.shown[group])]
            of_mean = self.common & self.shown[group]
            mean = _mean_cell(part, of_mean) if of_mean.any() else None
            yield GroupScores(self.name, group, part.images, part.subjects, tuple(cells), mean)

    def contrasts(self, findings: Sequence[str], min_group: int) -> Iterator[Contrast]:
        """Each known group less the others; of two groups, the first less the second."""
        everyone = sorted({str(group) for group in np.unique(self.groups)} - {UNKNOWN})
        if len(everyone) < 2:
            return
        two = len(everyone) == 2
        if two and len(self.known) < 2:
            return
        for group in self.known[:1] if two else self.known:
            other = next(name for name in self.known if name != group) if two else None
            rest = self.parts[other] if other else self._others(group)
            both = self.shown[group] & enough(rest, min_group)
            for finding, mask in _each(findings, both, self.common & both):
                for metric in TESTED:
                    result = difference(self.parts[group], rest, metric, mask)
                    yield Contrast(self.name, group, other, finding, metric, result.estimate, result.p)

    def _others(self, group: str) -> Part:
        return self.images.part((self.groups != group) & (self.groups != UNKNOWN), with_ap=False)

    def gaps(self, findings: Sequence[str]) -> Iterator[Gap]:
        if len(self.known) < 2:
            return
        anywhere = np.sum([self.shown[group] for group in self.known], axis=0) >= 2
        for finding, mask in _each(findings, anywhere, self.common):
            groups = [group for group in self.known if self.shown[group][mask].all()]
            for metric in GAPS:
                known = ~np.isnan([self.parts[group].mean(metric, mask) for group in groups])
                if len(groups) > 1 and mask.any() and known.all():
                    yield self._gap(finding, metric, mask, groups)

    def _gap(self, finding: str, metric: str, mask: np.ndarray, groups: list[str]) -> Gap:
        values = np.array([self.parts[group].mean(metric, mask) for group in groups])
        largest, smallest = groups[int(np.argmax(values))], groups[int(np.argmin(values))]
        result = difference(self.parts[largest], self.parts[smallest], metric, mask)
        draws = np.array([self.parts[group].mean_draws(metric, mask) for group in groups])
        centred = draws - np.nanmean(draws, axis=1, keepdims=True)
        chance = float(np.nanmean(np.ptp(centred, axis=0)))
        return Gap(self.name, finding, metric, largest, smallest, result.estimate, chance)


def _each(findings: Sequence[str], some: np.ndarray, common: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """MEAN with the mask of common findings, then each of `some` with a mask of it alone."""
    if common.any():
        yield MEAN, common
    for c in np.flatnonzero(some).tolist():
        yield findings[c], np.arange(len(some)) == c


def _cell(part: Part, c: int) -> Cell:
    alone = np.arange(len(part.positives)) == c
    scores = {metric: part.estimate(metric, alone) for metric in METRICS}
    return Cell(int(part.positives[c]), int(part.labelled[c]), float(part.prevalence[c]), float(part.ece[c]), scores)


def _mean_cell(part: Part, findings: np.ndarray) -> Cell:
    scores = {metric: part.estimate(metric, findings) for metric in METRICS}
    counts = int(part.positives[findings].sum()), int(part.labelled[findings].sum())
    return Cell(*counts, float(part.prevalence[findings].mean()), float(part.ece[findings].mean()), scores)


def _bounds(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {f"{name}{end}": None if estimate is None else getattr(estimate, key) for end, key in ends.items()}


__all__ = ["METRICS", "SCORES", "TESTED", "Cell", "Contrast", "Gap", "GroupReport", "GroupScores", "compare_groups"]
