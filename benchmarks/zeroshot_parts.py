"""The pure parts of benchmarks/zeroshot.py: what predicts findings without text in training, and how arms compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from cxrlt_ray.evaluation.estimate import Estimate, Sample

ROUNDS = 1000  # of the bootstrap
NEIGHBOURS = (1, 2, 3, 5, 10, 20, 40)


def conse(scores: np.ndarray, similarity: np.ndarray, neighbours: int) -> np.ndarray:
    """Scores [N, A] of asked findings: the probabilities [N, S] of the nearest seen ones, weighed by similarity [A, S].

    After ConSE (Norouzi et al. 2014) with independent labels in the place of a softmax. Similarities below 0 count 0;
    where none is above, the nearest alone counts. With one neighbour it is that finding as a proxy.
    """
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
    chosen = np.take_along_axis(similarity, nearest, axis=1).clip(min=0)
    chosen[:, 0] = np.where(chosen.any(axis=1), chosen[:, 0], 1.0)
    weights = np.zeros(similarity.shape)
    np.put_along_axis(weights, nearest, chosen / chosen.sum(axis=1, keepdims=True), axis=1)
    return scores @ weights.T


def cosines(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosine similarity [A, S] of embeddings [A, E] and [S, E]."""
    unit, other = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (rows, others))
    return unit @ other.T


class Choice(NamedTuple):
    """How seen findings predict others: by embeddings of prompts in `style`, from so many neighbours."""

    style: str
    neighbours: int


def choose(
    targets: np.ndarray,
    scores: np.ndarray,
    embeddings: Mapping[str, np.ndarray],
    fold: np.ndarray,
    neighbours: Sequence[int],
) -> Choice:
    """The style and number of neighbours by which the findings of each fold are best predicted from all others.

    targets, scores: [N, S] of validation images. embeddings: style -> [S, E]. fold: int [S], below 0 of a finding that
    is never left out. Best: the mean log lift over all findings that are left out; the first of equals.
    """
    from cxrlt_ray.evaluation.lift import mean_log_lift

    def merit(choice: Choice) -> float:
        similarity = cosines(embeddings[choice.style], embeddings[choice.style])
        predicted = np.zeros(scores.shape)
        for k in np.unique(fold[fold >= 0]):
            own, rest = fold == k, fold != k
            predicted[:, own] = conse(scores[:, rest], similarity[np.ix_(own, rest)], choice.neighbours)
        held = fold >= 0
        return float(np.nan_to_num(mean_log_lift(targets[:, held], predicted[:, held]), nan=-np.inf))

    return max((Choice(style, count) for style in embeddings for count in neighbours), key=merit)


def permutations(scores: np.ndarray) -> Iterator[np.ndarray]:
    """The scores [N, A] with every prompt given to another finding: all A - 1 turns of the columns."""
    yield from (np.roll(scores, turn, axis=1) for turn in range(1, scores.shape[1]))


@dataclass(frozen=True)
class LogLift:
    """The log lift of one arm in one cohort: values [C], draws [C, R] over subjects, AP [C], and what they rest on."""

    values: np.ndarray
    draws: np.ndarray
    ap: np.ndarray
    sample: Sample


def log_lift(
    targets: np.ndarray, systems: Sequence[np.ndarray], groups: np.ndarray, rounds: int = ROUNDS, seed: int = 0
) -> LogLift:
    """The mean log lift of `systems`, scores [N, C] each; the draws are the same for the same targets and groups."""
    from cxrlt_ray.evaluation.estimate import Sample
    from cxrlt_ray.evaluation.lift import lifts, log_lift_draws, prevalences

    draws = log_lift_draws(targets, systems, groups, rounds, seed).mean(axis=0)
    values = np.mean([np.log(lifts(targets, scores)) for scores in systems], axis=0)
    return LogLift(values, draws, np.exp(values) * prevalences(targets), Sample.of(targets, groups))


def mean_of(
    cohorts: Sequence[LogLift], others: Sequence[LogLift] | None = None, finding: int | None = None
) -> Estimate:
    """Lift, or how many times that of `others` in the same cohorts, as geometric mean over cohorts and findings.

    With a 95 % interval by subject; subjects of each cohort are drawn by themselves. finding: of one finding alone.
    """
    from cxrlt_ray.evaluation import metrics
    from cxrlt_ray.evaluation.estimate import Estimate, Sample

    rows = slice(None) if finding is None else [finding]
    second: Sequence[LogLift | None] = others if others is not None else [None] * len(cohorts)
    value, draws = [], []
    for one, other in zip(cohorts, second, strict=True):
        value.append(metrics.macro((one.values - (other.values if other else 0))[rows]))
        draws.append(metrics.means((one.draws - (other.draws if other else 0))[rows]))
    positives = np.sum([one.sample.positives[rows] for one in cohorts], axis=0)
    sample = Sample(positives, sum(one.sample.subjects for one in cohorts))
    estimate = Estimate.of_difference(float(np.mean(value)), np.mean(draws, axis=0), sample)
    return Estimate(*(float(np.exp(part)) for part in (estimate.value, estimate.low, estimate.high)))


def rank_correlation(first: Sequence[float], second: Sequence[float], rounds: int = ROUNDS, seed: int = 0) -> Estimate:
    """Spearman's rank correlation of two values of each trial, and its 95 % percentile interval over drawn trials.

    nan for fewer than 3 trials; draws in which either value is constant are left out.
    """
    from scipy.stats import rankdata

    from cxrlt_ray.evaluation.estimate import Estimate

    values = np.array([first, second], float)
    values = values[:, np.isfinite(values).all(axis=0)]

    def spearman(rows: np.ndarray) -> float:
        one, other = rankdata(values[0, rows]), rankdata(values[1, rows])
        return float(np.corrcoef(one, other)[0, 1]) if one.std() and other.std() else float("nan")

    count = values.shape[1]
    if count < 3:
        return Estimate(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    draws = [spearman(rng.integers(0, count, count)) for _ in range(rounds)]
    low, high = np.nanquantile(draws, [0.025, 0.975]) if np.isfinite(draws).any() else (np.nan, np.nan)
    return Estimate(spearman(np.arange(count)), float(low), float(high))
