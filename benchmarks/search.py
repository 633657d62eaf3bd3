"""Search strategies on replayed learning curves: TPE + ASHA, as a sweep has it, against random search without pruning.

benchmarks/curves.parquet holds real curves of a grid of small models (benchmarks/curves.py made it). A replay runs a
search on them, four trials at a time, an epoch costing one: Optuna suggests (the sweep's own sampler settings; with or
without the first start point of the space laptop, as the grid has it), Ray's own ASHAScheduler or an Optuna pruner
stops. On the phantom that start point is the grid's best. Quality is the best validation mAP reached so far, as a
share of the way from the grid's median trial to its best. `--replays` searches of each kind and dataset.
"""

from __future__ import annotations

import heapq
import itertools
import json
import statistics
import warnings
from collections.abc import Callable

import numpy as np
import optuna
import pandas as pd
from curves import BUILD, CURVES, GRID
from report import options, publish

START = {"backbone": "tf_efficientnet_lite0", "lr": 1e-3, "loss": "bce", "augment": 0.1}
TOGETHER, FULL = 4, 24  # trials at a time; whole trials that the reference's budget pays for
OWN = "start point, TPE + ASHA (a sweep's)"
Stop = Callable[[optuna.Trial, int, float], bool]


class Curves:
    """The curves of a dataset: point -> best validation mAP after each epoch [E]."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.number, self.curve = {}, {}
        for number, rows in table.sort_values("epoch").groupby("number"):
            point = tuple(rows.iloc[0][name] for name in GRID)
            self.number[point] = int(number)
            self.curve[point] = np.maximum.accumulate(rows["val_map"].to_numpy())
        self.epochs = len(next(iter(self.curve.values())))
        last = [curve[-1] for curve in self.curve.values()]
        self.median, self.best = float(np.median(last)), float(max(last))
        self.values = {name: [v for v in GRID[name] if v in set(table[name])] for name in GRID}

    def quality(self, value: float) -> float:
        """0 for the grid's median trial, 1 for its best."""
        return (value - self.median) / (self.best - self.median)


def asha(epochs: int, grace: int) -> Callable[[], Stop]:
    """Ray's asynchronous successive halving, as a sweep uses it."""

    def scheduler_stop() -> Stop:
        from ray.tune.schedulers import ASHAScheduler, TrialScheduler

        scheduler = ASHAScheduler(
            metric="m", mode="max", time_attr="e", max_t=epochs, grace_period=grace, reduction_factor=3
        )
        known: dict[int, object] = {}

        def stop(trial: optuna.Trial, epoch: int, value: float) -> bool:
            if trial.number not in known:
                known[trial.number] = type("Trial", (), {"trial_id": str(trial.number)})()
                scheduler.on_trial_add(None, known[trial.number])
            decision = scheduler.on_trial_result(None, known[trial.number], {"e": epoch, "m": value})
            return decision == TrialScheduler.STOP

        return stop

    return scheduler_stop


def pruner(optuna_trial: optuna.Trial, _epoch: int, _value: float) -> bool:
    """The Optuna study's own pruner, by the values that the trial has reported."""
    return optuna_trial.should_prune()


def never(_trial: optuna.Trial, _epoch: int, _value: float) -> bool:
    """No pruning."""
    return False


def replay(
    curves: Curves,
    budget: int,
    seed: int,
    sampler: str,
    stopping: Callable[[], Stop],
    optuna_pruner: optuna.pruners.BasePruner | None = None,
    truth: bool = True,
    start: bool = False,
) -> tuple[np.ndarray, dict[int, tuple[tuple, int]]]:
    """Quality after each epoch spent [budget], and each trial's point and epochs.

    start: whether the first trial is START. truth: whether Optuna is told that a trial was pruned; else it hears of a
    complete one, as from Ray's OptunaSearch.
    """
    samplers = {
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "TPE": lambda: optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, n_startup_trials=4, seed=seed
        ),
    }
    optuna_study = optuna.create_study(
        direction="maximize", sampler=samplers[sampler](), pruner=optuna_pruner or optuna.pruners.NopPruner()
    )
    if start:
        optuna_study.enqueue_trial(START)
    stop = stopping()
    order = itertools.count()
    queue: list = []
    done: dict[int, tuple[tuple, int]] = {}

    def begin(moment: float) -> None:
        trial = optuna_study.ask()
        point = tuple(trial.suggest_categorical(name, curves.values[name]) for name in GRID)
        heapq.heappush(queue, (moment + 1, next(order), trial, point, 1))

    for _ in range(TOGETHER):
        begin(0.0)
    best, qualities = -1.0, []
    while len(qualities) < budget:
        moment, _, trial, point, epoch = heapq.heappop(queue)
        value = float(curves.curve[point][epoch - 1])
        best = max(best, value)
        qualities.append(curves.quality(best))
        done[trial.number] = (point, epoch)
        trial.report(value, epoch)
        ended = epoch == curves.epochs
        if ended or stop(trial, epoch, value):
            if ended or not truth:
                optuna_study.tell(trial, value)
            else:
                optuna_study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            begin(moment)
        else:
            heapq.heappush(queue, (moment + 1, next(order), trial, point, epoch + 1))
    return np.array(qualities), done


def strategies(epochs: int) -> dict[str, dict]:
    """Every kind of search that is compared; the first is the reference, the second the sweep's own."""
    from cxrlt_ray.search.space import grace

    first = grace(epochs)
    halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)
    hyperband = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
    return {
        "random, no pruning": {"sampler": "random", "stopping": lambda: never},
        OWN: {"sampler": "TPE", "stopping": asha(epochs, first), "start": True},
        "start point, TPE, no pruning": {"sampler": "TPE", "stopping": lambda: never, "start": True},
        "TPE + ASHA": {"sampler": "TPE", "stopping": asha(epochs, first)},
        "TPE + ASHA from the first epoch": {"sampler": "TPE", "stopping": asha(epochs, 1)},
        "TPE + ASHA, pruned trials told as complete": {
            "sampler": "TPE",
            "stopping": asha(epochs, first),
            "truth": False,
        },
        "random + ASHA": {"sampler": "random", "stopping": asha(epochs, first)},
        "TPE, no pruning": {"sampler": "TPE", "stopping": lambda: never},
        "TPE + Optuna's MedianPruner": {
            "sampler": "TPE",
            "stopping": lambda: pruner,
            "optuna_pruner": optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=first - 1),
        },
        "TPE + Optuna's successive halving": {"sampler": "TPE", "stopping": lambda: pruner, "optuna_pruner": halving},
        "TPE + Optuna's Hyperband": {"sampler": "TPE", "stopping": lambda: pruner, "optuna_pruner": hyperband},
    }


def compare(name: str, curves: Curves, replays: int) -> tuple[list[str], list[tuple]]:
    """A table of qualities by epochs spent, and rows for the summary."""
    budget = FULL * curves.epochs
    quality_of: dict[str, np.ndarray] = {}
    trials: dict[str, float] = {}
    for kind, strategy in strategies(curves.epochs).items():
        searches = [replay(curves, budget, seed, **strategy) for seed in range(replays)]
        quality_of[kind] = np.array([qualities for qualities, _ in searches])
        trials[kind] = statistics.mean(len(done) for _, done in searches)
        print(f"{name}: {kind} {quality_of[kind][:, -1].mean():.3f}", flush=True)
    reference = quality_of["random, no pruning"]
    target = reference[:, -1].mean() - 1e-9  # its own mean reaches it
    lines = [
        f"| {name}: {len(curves.curve)} points, {curves.epochs} epochs | quality at a quarter ({budget // 4} epochs) | "
        f"at half | at all ({budget}) | epochs to the reference's quality | of the reference's | trials begun |",
        "|---|---|---|---|---|---|---|",
    ]
    table = pd.DataFrame(list(curves.curve.values()))
    ranks = table.corr("spearman").iloc[-1]
    correlations = ", ".join(f"{ranks.iloc[epoch - 1]:.2f} after epoch {epoch}" for epoch in (1, 2, 3, 6))
    after = [
        "",
        f"Rank correlation of a trial's best mAP so far with its last: {correlations}. A quarter of the epochs pays "
        f"for {budget // 4 // curves.epochs} whole trials, or {budget // 4 // 2} of two epochs.",
    ]
    rows = []
    for kind, qualities in quality_of.items():
        means = qualities.mean(axis=0)
        error = qualities.std(axis=0) / np.sqrt(replays)
        reached = int(np.argmax(means >= target)) + 1 if (means >= target).any() else None
        share = f"{reached / budget:.2f}" if reached else "more than 1"
        at = [budget // 4 - 1, budget // 2 - 1, budget - 1]
        cells = [f"{means[k]:.3f} ± {error[k]:.3f}" for k in at]
        lines.append(f"| {kind} | {' | '.join(cells)} | {reached or '-'} | {share} | {trials[kind]:.0f} |")
        if kind == OWN:
            less = qualities[:, at[0]] - reference[:, -1]
            ratio = f"quality {cells[0]} against {target:.3f} ({less.mean():+.3f}); equal at {share} of the epochs"
            rows.append(
                (f"search at a quarter of the epochs, {name}", "random without pruning, all epochs", ratio, "equal")
            )
    return [*lines, *after], rows


def pruned_for_selection(name: str, curves: Curves, replays: int) -> list[str]:
    """The gain of an ensemble by pruned trials: chosen on half of the validation subjects, scored on the other half."""
    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.evaluation.metrics import macro, per_finding
    from cxrlt_ray.selection.honest import fit
    from cxrlt_ray.selection.method import Method

    folder = BUILD / name
    if not (folder / "manifest.parquet").exists():
        return []
    manifest = Manifest.read(folder / "manifest.parquet").of_split("val")
    pools: dict[str, list[float]] = {"finished only": [], "with pruned trials": []}
    sizes: dict[str, list[int]] = {key: [] for key in pools}
    for seed in range(replays):
        _, done = replay(curves, FULL * curves.epochs // 2, seed, "TPE", asha(curves.epochs, 1))
        rungs = {point: max(rung for rung in (1, 3, 9) if rung <= epochs) for point, epochs in done.values()}
        finished = [point for point, epochs in done.values() if epochs == curves.epochs]
        rng = np.random.default_rng(seed)
        subjects = manifest.table["subject_id"].to_numpy()
        half = np.isin(subjects, rng.permutation(np.unique(subjects))[: len(np.unique(subjects)) // 2])
        for key, chosen in {"finished only": list(dict.fromkeys(finished)), "with pruned trials": list(rungs)}.items():
            frames = []
            for point in chosen:
                rung = curves.epochs if key == "finished only" else rungs[point]
                path = folder / "trials" / f"T{curves.number[point]:04d}" / f"rung-{rung}.parquet"
                frames.append(pd.read_parquet(path).set_index("image_id"))
            ids = manifest.table["image_id"]
            scores = np.stack([frame.loc[ids].to_numpy(np.float32) for frame in frames])
            targets = manifest.targets(tuple(frames[0].columns))
            method = Method("greedy_bagged", guard=20)  # as ensembles/greedy.yaml has it
            weights = fit(method, scores[:, half], targets[half], subjects[half], folds=2).weights
            combined = np.einsum("mnc,mc->nc", scores[:, ~half], weights)
            pools[key].append(macro(per_finding(targets[~half], combined, ("ap",))["ap"]))
            sizes[key].append(len(chosen))
    gain = np.array(pools["with pruned trials"]) - np.array(pools["finished only"])
    return [
        f"- {name}: greedy_bagged, guard 20, from finished trials ({np.mean(sizes['finished only']):.0f}) "
        f"{np.mean(pools['finished only']):.4f}, with pruned ones ({np.mean(sizes['with pruned trials']):.0f}) "
        f"{np.mean(pools['with pruned trials']):.4f} mAP on subjects not chosen on: "
        f"{gain.mean():+.4f} ± {gain.std() / np.sqrt(len(gain)):.4f} ({replays} searches of half the budget)."
    ]


def main() -> None:
    args = options(__doc__, {"replays": 40}).parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    table = pd.read_parquet(CURVES)
    lines, rows, gains = [], [], []
    for name, part in table.groupby("dataset"):
        curves = Curves(part)
        own, summary = compare(str(name), curves, args.replays)
        lines += ["", *own]
        rows += summary
        gains += pruned_for_selection(str(name), curves, args.replays)
    conditions = (
        f": {args.replays} replays of each, {TOGETHER} trials at a time; quality 0 is the grid's median trial, 1 its "
        f"best; ± one standard error.\nGrid: `{json.dumps(GRID)}`."
    )
    if gains:
        lines += [
            "",
            "What selection gets out of pruned trials (ASHA from the first epoch, half the budget):",
            "",
            *gains,
        ]
    publish("search", "Search on replayed curves", conditions, lines[1:], args.write, rows)


if __name__ == "__main__":
    main()
