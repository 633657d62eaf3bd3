"""Does extrapolating learning curves rank trials better than their best mAP so far? On the curves of search.py.

After epoch E a trial's last value is predicted: its best so far plus a ridge regression's estimate of what is still to
come, learnt from other trials that were trained to the end: N of the same run (mean of `--draws` draws), or all of the
other data set (an earlier run), on ratios. `shape` sees the curve so far, `settings` the trial's settings, too. Shown
is Spearman's rank correlation with the true last value, of trials not learnt from. Higher than `best so far` would be a
reason to promote by the prediction. Ten seconds on one core.

    python benchmarks/extrapolation.py --write
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from curves import CURVES, GRID
from report import options, publish

EPOCHS, FINISHED = (1, 2, 3), (6, 12, 24)
INPUTS = {"shape": False, "shape and settings": True}  # whether settings are seen


def curves_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Validation mAP by epoch [T, E], and the trials' settings [T, S] as numbers."""
    curves = table.pivot(index="number", columns="epoch", values="val_map").to_numpy()
    points = table.groupby("number").first()
    columns = [np.log(points["lr"]), np.log(points["lr"]) ** 2, points["augment"]]
    for name in ("backbone", "loss"):
        columns += [points[name] == value for value in GRID[name]]
    return curves, np.stack(columns, axis=1).astype(float)


def inputs(curves: np.ndarray, settings: np.ndarray, epoch: int, with_settings: bool) -> np.ndarray:
    """What a prediction sees of trials after an epoch [T, F]; values relative to the data set's mean."""
    seen = curves[:, :epoch]
    parts = [seen[:, -1], seen.max(axis=1)]
    if epoch > 1:
        parts += [seen[:, -1] - seen[:, -2], seen[:, -1] - seen[:, 0]]
    shape = np.stack(parts, axis=1) / seen[:, -1].mean()
    return np.hstack([shape, settings]) if with_settings else shape


def rank_correlation(predicted: np.ndarray, last: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, last).statistic)


def learnt(x: np.ndarray, gain: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """The gain of unseen trials by a ridge regression on standardised inputs."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return np.asarray(make_pipeline(StandardScaler(), Ridge(3.0)).fit(x, gain).predict(unseen))


def row(name: str, data: dict[str, tuple[np.ndarray, np.ndarray]], epoch: int, draws: int) -> list[str]:
    """Rank correlations on a data set after an epoch: best so far, from its own run, from the other data set."""
    curves, settings = data[name]
    best = np.maximum.accumulate(curves, axis=1)
    so_far, last = best[:, epoch - 1], best[:, -1]
    cells = [name, str(epoch), f"{rank_correlation(so_far, last):.2f}"]
    for with_settings in INPUTS.values():
        x = inputs(curves, settings, epoch, with_settings)
        for count in FINISHED:
            random, values = np.random.default_rng(count), []
            for _ in range(draws):
                order = random.permutation(len(x))
                finished, others = order[:count], order[count:]
                gain = learnt(x[finished], (last - so_far)[finished], x[others])
                values.append(rank_correlation(so_far[others] + gain, last[others]))
            cells.append(f"{np.mean(values):.2f}")
    for with_settings in INPUTS.values():
        ((other, of_other),) = (pair for key, pair in data.items() if key != name)
        reached = np.maximum.accumulate(other, axis=1)
        x = inputs(other, of_other, epoch, with_settings)
        gain = learnt(x, np.log(reached[:, -1] / reached[:, epoch - 1]), inputs(curves, settings, epoch, with_settings))
        cells.append(f"{rank_correlation(np.log(so_far) + gain, last):.2f}")
    return cells


def main() -> None:
    args = options(__doc__, {"draws": 100}).parse_args()
    data = {str(name): curves_of(table) for name, table in pd.read_parquet(CURVES).groupby("dataset")}
    heads = ["data", "after epoch", "best so far"]
    heads += [f"{what}, {count} of the run" for what in INPUTS for count in FINISHED]
    heads += [f"{what}, of the other data" for what in INPUTS]
    rows = [row(name, data, epoch, args.draws) for name in data for epoch in EPOCHS]
    lines = ["Spearman's rank correlation with a trial's mAP after 9 epochs.", ""]
    lines += ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    publish("extrapolation", "Extrapolated learning curves", ".", lines, args.write)


if __name__ == "__main__":
    main()
