"""The same model at home and at another site: how far each finding's scores drop, and what explains it.

Home and the site are independent samples: each is resampled by its own subjects, and a drop's variance is the sum of
both. A drop of AP is taken apart in this order:

    prevalence   what home's own images would score at the site's prevalence (prevalence.py)
    views        what they would score with the site's views, too: positives and negatives weighed, each by view
    rest         what neither explains: other machines, patients, labelling

Calibration likewise: what home's images would be biased by at the site's prevalence, if scores stayed what they are
among positives and among negatives (label shift), and the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.evaluation.corrected import holm
from cxrlt_ray.evaluation.estimate import Estimate
from cxrlt_ray.evaluation.groups import FEWEST, LEVEL, MEAN
from cxrlt_ray.evaluation.parts import Images, Part, best_f1_thresholds, difference
from cxrlt_ray.evaluation.prevalence import ap_at, to_prevalence, weighted_ap, weighted_auroc

if TYPE_CHECKING:
    import pandas as pd

DROPS = ("ap", "auroc", "fnr", "bias")
UNKNOWN = "UNKNOWN"  # a view
ENOUGH_VIEWS = 0.9  # share of the site's images of a finding that have a view which home has, to explain by views


@dataclass(frozen=True)
class ScoredImages:
    """Images of a site with what a model says of them.

    targets: int8 [N, C], 1, 0 or -1 (not labelled). scores: probabilities [N, C]. subjects, views: str [N].
    """

    targets: np.ndarray
    scores: np.ndarray
    subjects: np.ndarray
    views: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Explained:
    """A difference (site less home) in parts that add up to it; nan where a part cannot be told.

    prevalence, views: as the module says; where views cannot be told, they are part of the rest.
    """

    prevalence: float
    views: float
    rest: float


Explanation = tuple[Explained, Explained, Explained]  # of AP, AUROC and bias


@dataclass(frozen=True)
class Drop:
    """A finding at home and at the site, or the MEAN of findings.

    home, site: DROPS' scores. differences: site less home. positives, prevalence: home's and the site's. ap, auroc,
    bias: what explains those differences (auroc: no prevalence; bias: no views). p, corrected: that AUROC is the same.
    """

    finding: str
    positives: tuple[int, int]
    prevalence: tuple[float, float]
    home: dict[str, Estimate]
    site: dict[str, Estimate]
    differences: dict[str, Estimate]
    ap: Explained
    auroc: Explained
    bias: Explained
    p: float
    corrected: float

    @property
    def flagged(self) -> bool:
        """Whether AUROC differs, with all findings of the table counted (Holm)."""
        return bool(self.corrected < LEVEL)


@dataclass(frozen=True)
class SiteReport:
    """A site beside home. drops: MEAN first. left_out: findings with too few positives or negatives in either."""

    name: str
    images: tuple[int, int]
    subjects: tuple[int, int]
    drops: tuple[Drop, ...]
    left_out: tuple[str, ...]
    not_labelled: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """A row a finding: counts, scores at home and at the site, differences with bounds, and their parts."""
        import pandas as pd

        return pd.DataFrame([_row(self.name, drop) for drop in self.drops])


def compare_site(
    name: str,
    findings: Sequence[str],
    home: ScoredImages,
    site: ScoredImages,
    thresholds: np.ndarray | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> SiteReport:
    """Compare a site with home. thresholds: [C], for FNR; those with the best F1 at home unless given.

    A finding needs FEWEST positive and negative subjects in both; the mean is over the findings that have them.
    """
    thresholds = best_f1_thresholds(home.targets, home.scores) if thresholds is None else np.asarray(thresholds, float)
    parts = [
        Images.of(part.targets, part.scores, _own(part.subjects), thresholds, None, rounds, seed + k).part(
            np.ones(len(part), bool)
        )
        for k, part in enumerate((home, site))
    ]
    counts = np.min([np.minimum(part.positive_subjects, part.negative_subjects) for part in parts], axis=0)
    enough: np.ndarray = counts >= FEWEST
    labelled = np.any(site.targets >= 0, axis=0).tolist()
    columns: list[int] = np.flatnonzero(enough).tolist()
    explained = [_explained(home, site, parts, c) for c in columns]
    named = [(findings[c], np.arange(len(findings)) == c, why) for c, why in zip(columns, explained, strict=True)]
    if named:
        named.insert(0, (MEAN, enough, _mean(explained)))
    tests = [difference(parts[1], parts[0], "auroc", mask).p for _, mask, _ in named]
    corrected = holm(np.array(tests)).tolist()
    drops = [
        _drop(finding, mask, why, parts, p, of_all)
        for (finding, mask, why), p, of_all in zip(named, tests, corrected, strict=True)
    ]
    return SiteReport(
        name,
        (len(home), len(site)),
        (parts[0].subjects, parts[1].subjects),
        tuple(drops),
        tuple(f for f, ok, known in zip(findings, enough.tolist(), labelled, strict=True) if known and not ok),
        tuple(f for f, known in zip(findings, labelled, strict=True) if not known),
    )


def expected(home: ScoredImages, site: ScoredImages, finding: int) -> dict[str, float]:
    """What home's images of a finding would score if only prevalence, or prevalence and views, were the site's.

    Keys: ap_prevalence, ap_views, auroc_views, bias_prevalence; nan where a class or the views are not known.
    """
    targets, scores = home.targets[:, finding], home.scores[:, finding].astype(float)
    theirs = site.targets[:, finding]
    known = theirs >= 0
    share = float((theirs == 1).sum() / known.sum()) if known.any() else np.nan
    nothing = dict.fromkeys(("ap_prevalence", "ap_views", "auroc_views", "bias_prevalence"), float("nan"))
    if not 0 < share < 1 or not ((targets == 1).any() and (targets == 0).any()):
        return nothing
    at_share = to_prevalence(targets, share)
    result = nothing | {
        "ap_prevalence": ap_at(targets, scores, share),
        "bias_prevalence": float((at_share * scores).sum() / at_share.sum() - share),
    }
    by_view = _view_weights(targets, home.views, theirs, site.views)
    if by_view is not None:
        # weights by view change the share of positives: it is set anew, per class
        weights = np.where(targets == 1, share / _sum(by_view, targets == 1), 0.0)
        weights = np.where(targets == 0, (1 - share) / _sum(by_view, targets == 0), weights) * by_view
        result |= {
            "ap_views": weighted_ap(targets, scores, weights),
            "auroc_views": weighted_auroc(targets, scores, weights),
        }
    return result


def _view_weights(
    targets: np.ndarray, views: np.ndarray, site_targets: np.ndarray, site_views: np.ndarray
) -> np.ndarray | None:
    """Weights [N] with which home has the site's views among positives and among negatives; None: cannot be told."""
    weights = np.zeros(len(targets))
    for label in (0, 1):
        own, theirs = targets == label, site_targets == label
        shared = (set(views[own]) & set(site_views[theirs])) - {UNKNOWN}
        covered = np.isin(site_views[theirs], list(shared))
        if covered.mean() < ENOUGH_VIEWS:
            return None
        for view in shared:
            wanted = (site_views[theirs] == view).sum() / covered.sum()
            weights[own & (views == view)] = wanted / (views[own] == view).mean()
    return weights


def _sum(weights: np.ndarray, rows: np.ndarray) -> float:
    return float(weights[rows].sum())


def _explained(home: ScoredImages, site: ScoredImages, parts: list[Part], c: int) -> Explanation:
    """The parts of the differences of AP, AUROC and bias of a finding."""
    would = expected(home, site, c)
    own, theirs = ({name: float(part.values[name][c]) for name in DROPS} for part in parts)
    ap, last = would["ap_prevalence"], would["ap_views"]
    ap_views = last - ap
    ap_rest = theirs["ap"] - (ap if np.isnan(last) else last)
    auroc_views = would["auroc_views"] - own["auroc"]
    auroc_rest = theirs["auroc"] - own["auroc"] - (0.0 if np.isnan(auroc_views) else auroc_views)
    return (
        Explained(ap - own["ap"], ap_views, ap_rest),
        Explained(0.0, auroc_views, auroc_rest),
        Explained(would["bias_prevalence"] - own["bias"], np.nan, theirs["bias"] - would["bias_prevalence"]),
    )


def _mean(explained: list[Explanation]) -> Explanation:
    """The means over findings; views that cannot be told in one finding cannot in the mean, and join its rest."""
    result = []
    for parts in zip(*explained, strict=True):
        prevalence, views, rest = np.mean([(p.prevalence, p.views, p.rest) for p in parts], axis=0).tolist()
        if np.isnan(views):
            rest = float(np.mean([np.nansum([p.views, p.rest]) for p in parts]))
        result.append(Explained(prevalence, views, rest))
    return result[0], result[1], result[2]


def _drop(
    finding: str, mask: np.ndarray, explained: Explanation, parts: list[Part], p: float, corrected: float
) -> Drop:
    home, site = parts
    ap, auroc, bias = explained
    positives = tuple(int(part.positives[mask].sum()) for part in parts)
    prevalence = tuple(float(part.prevalence[mask].mean()) for part in parts)
    return Drop(
        finding,
        (positives[0], positives[1]),
        (prevalence[0], prevalence[1]),
        {name: home.estimate(name, mask) for name in DROPS},
        {name: site.estimate(name, mask) for name in DROPS},
        {name: difference(site, home, name, mask).estimate for name in DROPS},
        ap,
        auroc,
        bias,
        p,
        corrected,
    )


def _own(subjects: np.ndarray) -> np.ndarray:
    return np.asarray(subjects).astype(str)


def _row(name: str, drop: Drop) -> dict[str, str | int | float]:
    row: dict[str, str | int | float] = {"site": name, "finding": drop.finding}
    for k, where in enumerate(("home", "site")):
        row |= {f"positives_{where}": drop.positives[k], f"prevalence_{where}": drop.prevalence[k]}
    for metric in DROPS:
        for where, scores in (("home", drop.home), ("site", drop.site), ("difference", drop.differences)):
            estimate = scores[metric]
            row |= {f"{metric}_{where}": estimate.value}
            row |= {f"{metric}_{where}_low": estimate.low, f"{metric}_{where}_high": estimate.high}
    for metric, parts in (("ap", drop.ap), ("auroc", drop.auroc), ("bias", drop.bias)):
        row |= {f"{metric}_by_{name}": getattr(parts, name) for name in ("prevalence", "views", "rest")}
    return row | {"auroc_p": drop.p, "auroc_corrected": drop.corrected}
