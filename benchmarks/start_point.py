"""The space laptop's first start point, and what each part is worth. `python benchmarks/start_point.py --write`.

One training of EPOCHS epochs as the space has it, and with one thing changed, on nih384 and on lengths.py's phantom
(4,000 test images); `before` is what the space began with until November 2026. Test mAP of the mean of seeds; intervals
are paired by subject. What is trained is kept in build/start_point: a command that was cut goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from lengths import job_of, test_scores
from paired import paired
from report import publish

BUILD = Path(__file__).parent.parent / "build" / "start_point"
EPOCHS = 10
ROWS: dict[str, dict[str, Any]] = {
    "as the space has it": {},
    "batches of 32, rate 2e-3": {"batch_size": 32, "lr": 2e-3},
    "batches of 8, rate 1e-3": {"batch_size": 8, "lr": 1e-3},
    "whole images instead of crops": {"crop": 1.0},
    "augmented less (.2)": {"augment": 0.2},
    "before: 32, 1e-3, whole, .2": {"batch_size": 32, "lr": 1e-3, "crop": 1.0, "augment": 0.2},
    "no layer frozen": {"frozen_layers": 0},
    "no layer frozen, as much time": {"frozen_layers": 0, "epochs": round(EPOCHS / 1.45)},
}


def start() -> dict[str, Any]:
    """The trial that a sweep of the space begins with."""
    from cxrlt_ray.search.plan import draw_trials
    from cxrlt_ray.search.space_file import load_space

    (config,) = draw_trials(load_space("laptop"), 1)
    return config.model_dump() | {"epochs": EPOCHS, "patience": 0}


def rows_of(dataset: str, seeds: list[int], names: list[str]) -> list[list[str]]:
    """Train what is missing; a row a change of `names`."""
    from cxrlt_ray.runs.trial_config import TrialConfig
    from cxrlt_ray.training.job import manifest_of

    first = start()
    configs = {name: TrialConfig.model_validate(first | ROWS[name]) for name in names}
    shared = job_of(dataset, BUILD, sorted({config.edge for config in configs.values()}))
    scores: dict[str, list[np.ndarray]] = {name: [] for name in configs}
    for seed in seeds:
        for name, config in configs.items():
            trial = f"{list(ROWS).index(name)}-{seed}"
            scores[name].append(test_scores(shared, trial, config.model_copy(update={"seed": seed})))
    test = manifest_of(shared.run).of_split("test")
    result = paired(scores, test.targets(shared.findings), test.table["subject_id"].to_numpy().astype(str))
    plain, *_ = configs
    rows = []
    for name, values in result.values.items():
        reached = f"{values.mean():.3f} ({', '.join(f'{value:.3f}' for value in values)})"
        rows.append([dataset, name, reached, "" if name == plain else result.gain(name, plain)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["phantom", "nih384"], choices=["nih384", "phantom"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--changes", nargs="+", default=list(ROWS)[1:], choices=list(ROWS)[1:])
    parser.add_argument("--write", action="store_true", help="put the section into RESULTS.md")
    args = parser.parse_args()
    names = [next(iter(ROWS)), *args.changes]
    heads = ["data", f"{EPOCHS} epochs of", "test mAP (by seed)", "above the space's"]
    rows = [heads, ["---"] * len(heads), *(row for dataset in args.data for row in rows_of(dataset, args.seeds, names))]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    publish("start-point", "The first start point of the space laptop", ".", lines, args.write)


if __name__ == "__main__":
    main()
