"""One competitor, timed in a process of its own: `python peers.py NAME DATA.npz ROUNDS` prints a line of JSON.

Each is greedy ensemble selection with replacement (Caruana et al., ICML 2004) on average precision. They differ:
    cxrlt_ray      ours, all findings at once: the first of equals (1e-12), best prefix (1e-12)
    honest         the same and what makes its score honest: cross-fitting, the guard's strength, the bootstrap
    autogluon      AutoGluon's own class, in a virtual environment of its own: after the first round it rounds
                   errors to 6 decimals, among equals it prefers members already chosen, then draws; best prefix
    scikit_learn   a plain loop over scikit-learn, the reference for exactness: ties and prefix as in ours
    auto_sklearn   its algorithm, written anew: the members' mean in arrays made once, draws among equals; keeps
                   every round, no best prefix
selection.py starts them; this file needs numpy and what the competitor itself needs. All get the same float32 scores
and int8 targets (AutoGluon is a fifth slower with int64).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

# (predictions float32 [M, N, C], targets int8 [N, C], groups [N], rounds) -> weights float64 [M, C]
Selector = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
EQUAL = 1e-12


def cxrlt_ray() -> Selector:
    from cxrlt_ray.selection import greedy

    return lambda predictions, targets, groups, rounds: greedy(predictions, targets, groups, rounds=rounds)


def honest() -> Selector:
    """Best, mean and greedy with a guard of cross-fitted strength, all cross-fitted; and 1,000 draws of subjects."""
    from cxrlt_ray.evaluation import metrics
    from cxrlt_ray.selection.honest import combine, fit, side_by_side
    from cxrlt_ray.selection.method import AUTO, Method

    def select(predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, rounds: int) -> np.ndarray:
        methods = Method("best"), Method("mean"), Method("greedy", {"rounds": rounds}, guard=AUTO)
        predictions = side_by_side(predictions)
        fitted = [fit(method, predictions, targets, groups, folds=5) for method in methods]
        systems = [scores for f in fitted for scores in (combine(predictions, f.weights), f.crossed[0])]
        metrics.bootstrap_map(targets, systems, groups, rounds=1000)
        return fitted[-1].weights

    return select


def autogluon() -> Selector:
    from autogluon.core.metrics import average_precision
    from autogluon.core.models.greedy_ensemble.ensemble_selection import EnsembleSelection

    class Counting(EnsembleSelection):
        evaluations = 0

        def _calculate_regret(self, **arguments: object) -> float:
            self.evaluations += 1
            return super()._calculate_regret(**arguments)

    def select(scores: np.ndarray, targets: np.ndarray, rounds: int) -> np.ndarray:
        ensemble = Counting(ensemble_size=rounds, problem_type="binary", metric=average_precision)
        ensemble.fit(list(scores), targets)
        if ensemble.evaluations != len(scores) * rounds:
            sys.exit(f"AutoGluon made {ensemble.evaluations} evaluations, not {len(scores)} members x {rounds} rounds.")
        return ensemble.weights_

    return for_each_finding(select)


def scikit_learn() -> Selector:
    from sklearn.metrics import average_precision_score

    def select(scores: np.ndarray, targets: np.ndarray, rounds: int) -> np.ndarray:
        total, picked, reached = np.zeros(len(targets)), [], []
        for _ in range(rounds):
            values = np.array([average_precision_score(targets, total + member) for member in scores])
            picked.append(np.flatnonzero(values >= values.max() - EQUAL)[0])
            reached.append(values[picked[-1]])
            total += scores[picked[-1]]
        best = np.flatnonzero(np.array(reached) >= max(reached) - EQUAL)[0] + 1
        return np.bincount(picked[:best], minlength=len(scores)) / best

    return for_each_finding(select)


def auto_sklearn() -> Selector:
    from sklearn.metrics import average_precision_score

    def select(scores: np.ndarray, targets: np.ndarray, rounds: int) -> np.ndarray:
        draw = np.random.default_rng(0)
        total, mean, losses, counts = np.zeros(len(targets)), np.empty(len(targets)), *np.zeros((2, len(scores)))
        for chosen in range(rounds):
            for m, member in enumerate(scores):
                np.add(total, member, out=mean)
                np.multiply(mean, 1 / (chosen + 1), out=mean)
                losses[m] = 1 - average_precision_score(targets, mean)
            best = draw.choice(np.flatnonzero(losses == losses.min()))
            total += scores[best]
            counts[best] += 1
        return counts / rounds

    return for_each_finding(select)


def for_each_finding(select: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> Selector:
    """Of a selector for one finding (scores [M, N], targets [N], rounds -> weights [M]), one for all in turn."""

    def select_all(predictions: np.ndarray, targets: np.ndarray, groups: np.ndarray, rounds: int) -> np.ndarray:
        columns = zip(np.ascontiguousarray(predictions.transpose(2, 0, 1)), targets.T.copy(), strict=True)
        return np.stack([select(scores, column, rounds) for scores, column in columns], axis=1)

    return select_all


def peak_bytes() -> int:
    """The most memory this process has held; 0 where there is no /proc.

    Not getrusage's ru_maxrss: Linux hands that on through exec, so it counts the parent's memory too.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def main(name: str, path: str, rounds: str) -> None:
    began = time.perf_counter()
    competitors = (cxrlt_ray, honest, autogluon, scikit_learn, auto_sklearn)
    select = {competitor.__name__: competitor for competitor in competitors}[name]()
    imported = time.perf_counter()
    tiny = np.random.default_rng(0).random((2, 16, 2), np.float32)
    select(tiny, (np.arange(32).reshape(16, 2) % 3 == 0).astype(np.int8), np.arange(16), 2)
    ready = time.perf_counter()
    with np.load(path) as data:
        inputs = data["predictions"], data["targets"], data["groups"]
    before, start = peak_bytes(), time.perf_counter()
    weights = select(*inputs, int(rounds))
    seconds = time.perf_counter() - start
    installed = {package.metadata["Name"]: package.version for package in metadata.distributions()}
    result = {
        "seconds": seconds,
        "import": imported - began,  # beyond numpy
        "warm_up": ready - imported,
        "memory": peak_bytes() - inputs[0].nbytes,
        "memory_before": before - inputs[0].nbytes,
        "versions": {p: installed[p] for p in ("numpy", "scikit-learn", "numba", "autogluon.core") if p in installed},
        "weights": weights.tolist(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
