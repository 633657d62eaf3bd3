"""Promotion by the ensemble against promotion by a trial's own mAP, on simulated sweeps of equally many epochs.

A trial is of one of four families, which share part of their errors, and learns at its own rate to its own skill.
Sweeps run four trials at a time with rungs at 2 and 6 of 18 epochs; a trial that ends makes place for a new one, until
`--epochs` (216) are spent. What is scored is the ensemble of the trials that were trained to their end, chosen by
greedy_global on validation subjects, on test subjects that chose nothing; and their plain mean. Three worlds:

    alone     errors have nothing in common
    families  half of a trial's errors are its family's; families know equally much
    favourite the same, and one family knows more: by own mAP it takes most places

    python benchmarks/promotion.py --write
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import numpy as np
from report import options, publish

VALIDATION, TEST, TOGETHER, EPOCHS, BUDGET = 600, 3000, 4, 18, 216
RUNGS, REDUCTION, FAMILIES = (2, 6), 3, 4
PREVALENCE = np.array([0.3, 0.2, 0.12, 0.08, 0.05])
WORLDS = {"alone": (0.0, 0.0), "families": (0.5, 0.0), "favourite": (0.5, 0.25)}  # shared errors, favourite's skill
Pool = dict[int, tuple[float, np.ndarray]]  # trial -> its own mAP and its validation predictions at a rung
GoesOn = Callable[[Pool, int], bool]


class World:
    """The cohort and the trials of one seed: the same for every way to promote."""

    def __init__(self, shared: float, favour: float, seed: int) -> None:
        self.shared, self.favour, self.seed = shared, favour, seed
        random = np.random.default_rng([seed, 0])
        shape = (VALIDATION + TEST, len(PREVALENCE))
        self.targets = (random.random(shape) < PREVALENCE).astype(np.int8)
        self.errors = random.normal(size=(FAMILIES, *shape))
        self.groups = np.arange(VALIDATION)
        self.fold = self.groups % 3

    def predictions(self, trial: int, epochs: int) -> np.ndarray:
        """Probabilities float32 [N, C] of all images by a trial after so many epochs."""
        random = np.random.default_rng([self.seed, 1, trial])
        family = int(random.integers(FAMILIES))
        skill = random.normal(1.3, 0.2) + self.favour * (family == 0)
        learnt = 1 - np.exp(-epochs / random.uniform(1.5, 5.0))
        own = random.normal(size=self.targets.shape)
        errors = np.sqrt(self.shared) * self.errors[family] + np.sqrt(1 - self.shared) * own
        return (1 / (1 + np.exp(1.5 - skill * learnt * self.targets - errors))).astype(np.float32)

    def macro(self, scores: np.ndarray, part: slice) -> float:
        """Macro mAP of scores [n, C] of the images `part`."""
        from cxrlt_ray.evaluation.metrics import macro
        from cxrlt_ray.selection.average_precision import precision

        return macro(precision(scores.astype(float), self.targets[part]))


SEEN, UNSEEN = slice(VALIDATION), slice(VALIDATION, None)


def by_map(_: World) -> GoesOn:
    """Ray's ASHA: at least the mAP of the best third of those before it."""

    def goes_on(pool: Pool, trial: int) -> bool:
        before = [score for other, (score, _) in pool.items() if other != trial]
        return not before or pool[trial][0] >= np.percentile(before, 100 * (1 - 1 / REDUCTION))

    return goes_on


def by_ensemble(world: World) -> GoesOn:
    """`--promote ensemble`."""
    from cxrlt_ray.selection.worth import gains, members_ahead

    def goes_on(pool: Pool, trial: int) -> bool:
        if len(pool) < 2:
            return True
        scores = np.array([score for score, _ in pool.values()])
        predictions = np.stack([values for _, values in pool.values()])
        last, result = len(pool) - 1, gains(predictions, world.targets[SEEN], world.groups, world.fold)
        ahead = members_ahead(last, scores, result.gain, lambda others: result.errors(last, others))
        return ahead < -(-last // REDUCTION)

    return goes_on


WAYS: dict[str, Callable[[World], GoesOn]] = {"map": by_map, "ensemble": by_ensemble}


def sweep(world: World, goes_on: GoesOn, budget: int) -> list[int]:
    """The trials that were trained to their end."""
    number, pools, finished = itertools.count(TOGETHER), {rung: {} for rung in RUNGS}, []
    queue = [(1, trial, 1) for trial in range(TOGETHER)]  # when it ends, the trial, its epoch
    for _ in range(budget):
        moment, trial, epoch = heapq.heappop(queue)
        ended = epoch == EPOCHS
        if ended:
            finished.append(trial)
        elif epoch in pools:
            values = world.predictions(trial, epoch)[SEEN]
            pools[epoch][trial] = (world.macro(values, SEEN), values)
            ended = not goes_on(pools[epoch], trial)
        follower = (next(number), 1) if ended else (trial, epoch + 1)
        heapq.heappush(queue, (moment + 1, *follower))
    return finished


def scored(world: World, finished: list[int]) -> dict[str, float]:
    """Test mAP of the ensemble, of the plain mean and of the best trial; how many trials there are."""
    from cxrlt_ray.selection import greedy_global

    values = np.stack([world.predictions(trial, EPOCHS) for trial in finished])
    seen, unseen = values[:, SEEN], values[:, UNSEEN]
    weights = greedy_global.__wrapped__(seen, world.targets[SEEN], world.groups, rounds=20)  # type: ignore[attr-defined]
    best = int(np.argmax([world.macro(one, SEEN) for one in seen]))
    return {
        "ensemble": world.macro(np.einsum("mnc,mc->nc", unseen, weights), UNSEEN),
        "mean": world.macro(unseen.mean(axis=0), UNSEEN),
        "best trial": world.macro(unseen[best], UNSEEN),
        "finished": float(len(finished)),
    }


def main() -> None:
    args = options(__doc__, {"seeds": 8, "epochs": BUDGET}).parse_args()
    lines = [
        "| errors | promoted by | ensemble, test mAP | plain mean | best trial | finished trials |",
        "|---|---|---|---|---|---|",
    ]
    for name, (shared, favour) in WORLDS.items():
        values: dict[str, dict[str, np.ndarray]] = {}
        worlds = [World(shared, favour, seed) for seed in range(args.seeds)]
        for way, promote in WAYS.items():
            scores = [scored(world, sweep(world, promote(world), args.epochs)) for world in worlds]
            values[way] = {key: np.array([one[key] for one in scores]) for key in scores[0]}
            cells = [f"{values[way][key].mean():.4f}" for key in ("ensemble", "mean", "best trial")]
            lines.append(f"| {name} | {way} | {' | '.join(cells)} | {values[way]['finished'].mean():.1f} |")
            print(lines[-1], flush=True)
        less = [values["ensemble"][key] - values["map"][key] for key in ("ensemble", "mean", "best trial")]
        gain = [f"{one.mean():+.4f} ± {one.std(ddof=1) / np.sqrt(len(one)):.4f}" for one in less]
        lines.append(f"| {name} | ensemble less map | {' | '.join(gain)} | |")
        print(lines[-1], flush=True)
    conditions = (
        f": {args.seeds} sweeps of {args.epochs} epochs of each kind, the same trials for both; ± one standard error "
        "of the mean."
    )
    publish("promotion", "Promotion by the ensemble, simulated", conditions, lines, args.write)


if __name__ == "__main__":
    main()
