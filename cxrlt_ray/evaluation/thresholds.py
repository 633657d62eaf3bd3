"""Thresholds of findings by stated aims, with what they reach and what they cost on subjects that did not choose them.

f1                the highest F1
sensitivity=S     the highest threshold that is expected to find at least the share S of positives
critical=F        the same with S = 1 - F, of critical findings: at most the share F of them is missed

A sensitivity that was just reached where it was chosen is missed half the time elsewhere. So the aim is held by
conformal risk control (Angelopoulos et al. 2024, with subjects as units): of n positive subjects and a share m of
positive images missed, n m + 1 <= (1 - S) (n + 1). It needs n >= S / (1 - S), 19 for .95; below that every image is
called.
What is reported is cross-fitted: of each image by a threshold chosen without its subject's fold.
A new aim is a function under `@register_aim("name")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation import confusion, metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample
from cxrlt_ray.evaluation.reliability import known

# labels bool [n] and subjects [n] of one finding by descending scores float64 [n], the bound -> how many to call
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, float], int]
PER = 1000  # images, of which false alarms are counted


@dataclass(frozen=True)
class AimKind:
    """How an aim chooses. bounded: whether it takes a number. critical: whether it is for critical findings alone."""

    rule: Rule
    bounded: bool
    critical: bool


AIMS: dict[str, AimKind] = {}


@dataclass(frozen=True)
class Aim:
    """What a threshold is for: a name of AIMS and its bound in (0, 1); 0 where it takes none."""

    name: str
    bound: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}={self.bound:g}" if AIMS[self.name].bounded else self.name

    @property
    def kind(self) -> AimKind:
        """How it chooses."""
        return AIMS[self.name]

    @classmethod
    def parse(cls, text: str) -> Aim:
        """An aim as it is written on the command line. Raises UsageError where it is none.

        >>> Aim.parse("sensitivity=0.9")
        Aim(name='sensitivity', bound=0.9)
        """
        name, _, number = text.partition("=")
        if name not in AIMS:
            forms = ", ".join(f"{key}=X" if kind.bounded else key for key, kind in AIMS.items())
            raise UsageError(f"--thresholds '{text}' is no aim: it takes {forms}.")
        if not AIMS[name].bounded:
            if number:
                raise UsageError(f"--thresholds {name} takes no number, but was given '{text}'.")
            return cls(name)
        try:
            bound = float(number)
        except ValueError:
            bound = float("nan")
        if not 0 < bound < 1:
            raise UsageError(f"--thresholds {name}=X takes a share between 0 and 1, as {name}=0.1, not '{text}'.")
        return cls(name, bound)


def register_aim(name: str, bounded: bool = False, critical: bool = False) -> Callable[[Rule], Rule]:
    """Make a rule the aim `name`."""

    def register(rule: Rule) -> Rule:
        AIMS[name] = AimKind(rule, bounded, critical)
        return rule

    return register


@register_aim("f1")
def best_f1(positive: np.ndarray, subject: np.ndarray, scores: np.ndarray, bound: float) -> int:
    """The number of images whose F1 is highest, 2 TP / (called + P); of equals the fewest."""
    called = _ends(scores)
    return int(called[np.argmax(2 * np.cumsum(positive)[called - 1] / (called + positive.sum()))])


@register_aim("sensitivity", bounded=True)
def sensitivity_at_least(positive: np.ndarray, subject: np.ndarray, scores: np.ndarray, bound: float) -> int:
    """The fewest images that hold the aim, as this file's docstring says; all where none does."""
    called, n = _ends(scores), len(np.unique(subject[positive]))
    missed = 1 - np.cumsum(positive)[called - 1] / positive.sum()
    enough = np.flatnonzero(n * missed + 1 <= (1 - bound) * (n + 1) + 1e-9)
    return int(called[enough[0]]) if len(enough) else len(scores)


@register_aim("critical", bounded=True, critical=True)
def missed_at_most(positive: np.ndarray, subject: np.ndarray, scores: np.ndarray, bound: float) -> int:
    """The fewest images by which at most the share `bound` of positives is missed."""
    return sensitivity_at_least(positive, subject, scores, 1 - bound)


@dataclass(frozen=True)
class Operation:
    """What calling images positive reaches and costs on one set of images.

    sensitivity: TP / P. fpr: FP / N. precision: TP / (TP + FP). f1. false_alarms: FP in 1,000 labelled images.
    """

    images: int
    positives: int
    sensitivity: Estimate
    fpr: Estimate
    precision: Estimate
    f1: Estimate
    false_alarms: Estimate


@dataclass(frozen=True)
class Threshold:
    """A finding's threshold, chosen on all images: those that score at least so much are called positive.

    crossed: what thresholds chosen without an image's subject do to it. note: why it is not what was aimed at, or "".
    """

    finding: str
    aim: Aim
    value: float
    crossed: Operation
    note: str = ""


def threshold(targets: np.ndarray, scores: np.ndarray, groups: np.ndarray, aim: Aim) -> float:
    """The threshold of one finding by `aim`, in the middle between two scores; nan without positives, 0 calls all.

    targets: int8 [N], 1, 0 or -1 (not labelled). scores: float [N] in [0, 1]. groups: [N] subjects.
    """
    rows = (np.asarray(targets) >= 0) & ~np.isnan(np.asarray(scores, float))
    labels, values = known(targets, scores)
    if not labels.any():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    values = values[order]
    called = aim.kind.rule(labels[order] == 1, np.asarray(groups)[rows][order], values, aim.bound)
    return float((values[called - 1] + values[called]) / 2) if called < len(values) else 0.0


def choose_thresholds(
    targets: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    findings: Sequence[str],
    aims: Sequence[Aim],
    fold: np.ndarray,
    critical: Sequence[str] = (),
    rounds: int = 1000,
    seed: int = 0,
) -> tuple[Threshold, ...]:
    """A threshold for each aim and finding that it is for; of findings without positives none.

    targets: int8 [N, C], 1, 0 or -1 (not labelled). scores: float [N, C] in [0, 1]. groups: [N] subjects. fold: [N], of
    whole subjects; with one fold nothing is cross-fitted, and `note` says so. critical: names, for aims that are for
    such findings.
    """
    result = []
    for aim in aims:
        for c in (c for c, name in enumerate(findings) if not aim.kind.critical or name in critical):
            column, own = np.asarray(targets)[:, c], np.asarray(scores, float)[:, c]
            if not (column[~np.isnan(own)] == 1).any():
                continue
            value = threshold(column, own, groups, aim)
            called = _crossed_calls(column, own, groups, aim, fold, value)
            crossed = operation(np.where(np.isnan(own), -1, column), called, groups, rounds, seed)
            people = metrics.positive_subjects(np.where(np.isnan(own), -1, column)[:, None], groups)[0]
            result.append(Threshold(findings[c], aim, value, crossed, _note(aim, value, int(people), fold)))
    return tuple(result)


def operation(
    targets: np.ndarray, called: np.ndarray, groups: np.ndarray, rounds: int = 1000, seed: int = 0
) -> Operation:
    """What `called` [N], which images are called positive, reaches and costs; targets, groups: [N].

    Intervals are 95 %, by bootstrap of subjects; they rest on the positive subjects (for FPR and false alarms the
    negative ones), and are not known below 5.
    """
    targets = np.asarray(targets)
    table = confusion.counts(targets[:, None], np.asarray(called).astype(np.int8)[:, None])
    whole, drawn = table.sum(axis=(1, 2)), confusion.resampled(table, groups, rounds, seed)[:, 0]
    people = int(metrics.numbered(groups).max()) + 1
    behind = {
        label: Sample(metrics.positive_subjects((targets[:, None] == label).astype(np.int8), groups), people)
        for label in (0, 1)
    }
    of_positives, of_negatives, of_calls = behind[1], behind[0], np.asarray(called) & (targets >= 0)
    calling = Sample(metrics.positive_subjects(of_calls[:, None].astype(np.int8), groups), people)

    def estimate(measure: Callable[[np.ndarray], np.ndarray], sample: Sample) -> Estimate:
        return Estimate.of_score(float(measure(whole)), measure(drawn), sample)

    share = estimate(_false_alarms, of_negatives)
    return Operation(
        images=int((targets >= 0).sum()),
        positives=int((targets == 1).sum()),
        sensitivity=estimate(lambda counts: confusion.rates(counts)["recall"], of_positives),
        fpr=estimate(_fpr, of_negatives),
        precision=estimate(lambda counts: confusion.rates(counts)["precision"], calling),
        f1=estimate(lambda counts: confusion.rates(counts)["f1"], of_positives),
        false_alarms=Estimate(*(PER * value for value in (share.value, share.low, share.high))),
    )


def _crossed_calls(
    targets: np.ndarray, scores: np.ndarray, groups: np.ndarray, aim: Aim, fold: np.ndarray, value: float
) -> np.ndarray:
    """Which images [N] are called by thresholds chosen without their fold: all where the other folds lack positives."""
    called = scores >= value
    for k in np.unique(fold) if len(np.unique(fold)) > 1 else ():
        rows = fold == k
        own = threshold(targets[~rows], scores[~rows], groups[~rows], aim)
        called[rows] = scores[rows] >= (0.0 if np.isnan(own) else own)
    return called


def _note(aim: Aim, value: float, positive_subjects: int, fold: np.ndarray) -> str:
    notes = []
    if value == 0:
        # what the aim would call were all positives ahead of a negative of another subject
        labels = np.arange(positive_subjects + 1) < positive_subjects
        few = aim.kind.rule(labels, np.arange(len(labels)), -np.arange(len(labels), dtype=float), aim.bound)
        why = "too few positive subjects for" if few == len(labels) else "no higher threshold fits"
        notes.append(f"{why} this aim: every image is called")
    return "; ".join(notes + (["one subject: not cross-fitted"] if len(np.unique(fold)) < 2 else []))


def _ends(scores: np.ndarray) -> np.ndarray:
    """The numbers of images that a threshold can call, ascending; scores [n] descend."""
    return np.flatnonzero(np.append(np.diff(scores) != 0, True)) + 1


def _fpr(counts: np.ndarray) -> np.ndarray:
    _, false, _, true = counts
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(false / (false + true))


def _false_alarms(counts: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(counts[1] / counts.sum(axis=0))
