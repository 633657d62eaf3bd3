"""Successive halving simulated with made-up learning curves: what ASHA saves, before a trial is trained."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.search.space import REDUCTION, grace

# of a made-up trial's score in its first epoch, in units of the spread between trials; chosen, not fitted: the small
# models of benchmarks/search.py are noisier (rank correlation with the last epoch .46 to .56 after the first)
NOISE = 0.6
TURNAROUND, START = 2.0, 30.0  # seconds between trials of a process, and before its first


@dataclass(frozen=True)
class Simulation:
    """A simulated search: wall seconds, device seconds, and the epochs of each trial [N]."""

    wall: float
    busy: float
    epochs: np.ndarray


def simulate(
    seconds: Sequence[float | Sequence[float]],
    epochs: int,
    concurrent: int,
    prune: bool = True,
    seed: int = 0,
    first_rung: int | None = None,
) -> Simulation:
    """Trials with these seconds an epoch (or for each epoch), `concurrent` at a time, stopped by successive halving.

    first_rung: an epoch.

    A made-up trial has a quality drawn from a normal distribution; what an epoch shows of it is blurred by NOISE
    that shrinks with the square root of the epoch. The rule is Ray's (`stops`).
    """
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=len(seconds))
    lasting = [[float(s)] * epochs if np.ndim(s) == 0 else list(s) for s in seconds]  # type: ignore[arg-type]
    first = first_rung or grace(epochs)
    scores: dict[int, list[float]] = {rung: [] for k in range(20) if (rung := first * REDUCTION**k) < epochs}
    done = np.zeros(len(seconds), int)
    busy = 0.0
    queue: list[tuple[float, int, int]] = []
    waiting = iter(range(len(seconds)))
    for trial in itertools.islice(waiting, concurrent):  # events: (moment, trial, epoch that ends then)
        heapq.heappush(queue, (START + lasting[trial][0], trial, 1))
        busy += START + lasting[trial][0]
    wall = 0.0
    while queue:
        wall, trial, epoch = heapq.heappop(queue)
        done[trial] = epoch
        stop = epoch >= len(lasting[trial])
        if epoch in scores and prune:
            score = float(quality[trial] + NOISE / np.sqrt(epoch) * rng.normal())
            stop = stop or stops(score, scores[epoch])
            scores[epoch].append(score)
        if not stop:
            heapq.heappush(queue, (wall + lasting[trial][epoch], trial, epoch + 1))
            busy += lasting[trial][epoch]
        elif (following := next(waiting, None)) is not None:
            heapq.heappush(queue, (wall + TURNAROUND + lasting[following][0], following, 1))
            busy += TURNAROUND + lasting[following][0]
    return Simulation(wall, busy, done)


def stops(score: float, before: Sequence[float]) -> bool:
    """Whether ASHA stops a trial at a rung where `before` was seen: it is below the top 1/REDUCTION of these."""
    return bool(before) and score < float(np.percentile(before, 100 * (1 - 1 / REDUCTION)))
