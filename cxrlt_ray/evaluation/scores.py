"""What a submission is worth: the challenge's scores, per finding and for head, medium and tail, with intervals.

Scores have 95 % intervals, resampled by subject (estimate.py). A finding without positives stands in no mean of AP.
78,946 images of 40 findings take about 10 s on 2 cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample
from cxrlt_ray.evaluation.groups import GroupReport
from cxrlt_ray.evaluation.lift import lift_estimates
from cxrlt_ray.evaluation.sites import SiteReport

if TYPE_CHECKING:
    import pandas as pd

# name among the scores and in the paper's table -> what a person reads
SUMMARY = {
    "map": "mAP",
    "mauroc": "mAUROC",
    "macro_f1": "macro F1 at 0.5",
    "micro_f1": "micro F1 at 0.5",
    "fnr": "FNR at 0.5",
    "micro_fnr": "micro FNR at 0.5",
    "ece": "ECE",
    "ece_challenge": "ECE, challenge variant",
}
METRICS = ("ap", "auroc", "f1", "fnr")  # those that have intervals
ENDS = {"": "value", "_low": "low", "_high": "high"}
UNSEEN = ""  # the group of a finding that is not labelled in training


@dataclass(frozen=True)
class Scores:
    """Scores of N images, `subjects` patients.

    groups: [C] head, medium, tail or UNSEEN. scores: SUMMARY's names and the groups (their mAP) -> value, nan where
    it is not known. intervals: the same names, but for ECE's -> 95 % bounds; nan where too few positive subjects tell.
    per_finding: metrics.per_finding's [C] arrays; labelled (a count) and prevalence (a share of it); `ap_low`,
    `ap_high` and the like of auroc, f1 and fnr; where findings are UNSEEN also lift (AP / prevalence) and its bounds.
    many_images: the mAP that many images would give. lift: the geometric mean of the UNSEEN findings'. by_group, sites:
    the same images by groups, and beside other sites', where these were asked for.
    """

    findings: tuple[str, ...]
    groups: tuple[str, ...]
    images: int
    subjects: int
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_finding: dict[str, np.ndarray]
    many_images: float
    lift: Estimate | None = None
    by_group: GroupReport | None = None
    sites: tuple[SiteReport, ...] = ()

    @property
    def without_positives(self) -> list[str]:
        """The findings that stand in no mean."""
        return [name for name, count in zip(self.findings, self.per_finding["positives"], strict=True) if not count]

    @property
    def chance(self) -> float:
        """The mAP of constant predictions: the mean prevalence of the findings that have positives."""
        prevalence = self.per_finding["prevalence"]
        return metrics.macro(np.where(self.per_finding["positives"] > 0, prevalence, np.nan))

    def frame(self) -> pd.DataFrame:
        """A row a finding: finding, group, then per_finding's columns."""
        import pandas as pd

        counts = {name: self.per_finding[name].astype(int) for name in ("positives", "labelled")}
        return pd.DataFrame({"finding": self.findings, "group": self.groups, **self.per_finding, **counts})


def evaluate(
    targets: np.ndarray,
    probabilities: np.ndarray,
    findings: Sequence[str],
    rarity: Sequence[str],
    groups: np.ndarray,
    rounds: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score probabilities.

    targets: int8 [N, C], 1, 0 or -1 (not labelled). probabilities: float [N, C] in [0, 1]. findings, rarity: [C] names
    and their groups. groups: [N] subjects, drawn whole in each of the `rounds` of bootstrap.
    """
    values = metrics.per_finding(targets, probabilities)
    labelled = (targets >= 0).sum(axis=0).astype(float)
    values |= {"labelled": labelled, "prevalence": values["positives"] / np.where(labelled, labelled, np.nan)}
    summary = {
        "map": metrics.macro(values["ap"]),
        "mauroc": metrics.macro(values["auroc"]),
        "macro_f1": metrics.macro(values["f1"]),
        "micro_f1": metrics.micro_f1(targets, probabilities),
        "fnr": metrics.macro(values["fnr"]),
        "micro_fnr": metrics.fnr(targets.ravel(), probabilities.ravel()),
        "ece": metrics.macro(values["ece"]),
        "ece_challenge": metrics.macro(values["ece_challenge"]),
        **metrics.by_rarity(values["ap"], rarity),
    }
    draws, sample = metrics.bootstrap_scores(targets, probabilities, groups, rounds, seed), Sample.of(targets, groups)
    healthy = metrics.positive_subjects(np.where(targets == 0, 1, 0), groups)
    both = Sample(np.minimum(sample.positives, healthy), sample.subjects)  # AUROC needs both
    samples = {name: both if name == "auroc" else sample for name in METRICS}
    intervals = _intervals(summary, draws, samples, rarity)
    values |= _bounds_by_finding(values, draws, samples)
    many = metrics.population_map(targets, probabilities, groups)
    lift = None
    if UNSEEN in rarity:
        unseen = np.array(rarity) == UNSEEN
        estimates = lift_estimates(targets, probabilities, groups, rounds, seed, among=unseen)
        values |= {"lift" + end: np.array([getattr(e, key) for e in estimates.findings]) for end, key in ENDS.items()}
        lift = estimates.mean
    return Scores(tuple(findings), tuple(rarity), len(targets), sample.subjects, summary, intervals, values, many, lift)


def _intervals(
    summary: dict[str, float], draws: dict[str, np.ndarray], samples: dict[str, Sample], rarity: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """The bounds of the summary's scores. draws: metrics.bootstrap_scores; samples: what each of METRICS rests on."""
    every = samples["ap"]
    estimates = {key: Estimate.of_score(summary[key], draws[key], every) for key in ("micro_f1", "micro_fnr")}
    for key, name in {"map": "ap", "mauroc": "auroc", "macro_f1": "f1", "fnr": "fnr"}.items():
        estimates[key] = Estimate.of_score(summary[key], metrics.means(draws[name]), samples[name])
    for group in set(rarity) & set(summary):
        part = np.array(rarity) == group
        estimates[group] = Estimate.of_score(summary[group], metrics.means(draws["ap"][part]), every.part(part))
    return {key: (estimate.low, estimate.high) for key, estimate in estimates.items()}


def _bounds_by_finding(
    values: dict[str, np.ndarray], draws: dict[str, np.ndarray], samples: dict[str, Sample]
) -> dict[str, np.ndarray]:
    """`ap_low`, `ap_high` and so on of each of METRICS, [C]."""
    bounds: dict[str, np.ndarray] = {}
    for name in METRICS:
        columns = zip(values[name], draws[name], strict=True)
        ends = [Estimate.of_score(*column, samples[name].part([c])) for c, column in enumerate(columns)]
        bounds |= {f"{name}_low": np.array([e.low for e in ends]), f"{name}_high": np.array([e.high for e in ends])}
    return bounds
