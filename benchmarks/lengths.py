"""Few long trainings or many short ones: what their mean is worth. `python benchmarks/lengths.py --write`.

One model (ImageNet tf_efficientnet_lite0 at 64 px, the first start point of the space laptop) is trained for each of
LENGTHS epochs with several seeds, on nih384 and on a phantom of 1,100 training and 4,000 test images. A budget of
epochs is then spent in every way that the lengths allow, as k members of budget / k epochs each, whose plain mean is
scored on the test images; intervals are paired by subject. What is trained is kept in build/lengths: a command that was
cut goes on.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cache import job
from paired import paired
from report import publish

if TYPE_CHECKING:
    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.runs.trial_config import TrialConfig
    from cxrlt_ray.training.job import Job

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "lengths"
NIH = HERE.parents[1] / "shared" / "data" / "nih384"
RESOLUTION = 64
LENGTHS = {6: 4, 12: 4, 24: 2, 48: 1}  # epochs: members
TRAIN, VAL = 1100, 300  # images of the phantom; the others are its test part


def cohort_of(dataset: str) -> Manifest:
    """The images of a data set."""
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.phantom import write_phantom

    if dataset == "nih384":
        return read_cohort(str(NIH), task="auto").manifest
    folder = BUILD / "phantom-tree"
    write_phantom(str(folder), images=5400, size=128, seed=0, processes=1)
    cohort = read_cohort(str(folder), task="task1").manifest
    order = cohort.table["subject_id"].unique()
    place = {subject: k for k, subject in enumerate(np.random.default_rng(0).permutation(order))}
    first = cohort.table["subject_id"].map(place).sort_values(kind="stable").index
    cohort.table["split"] = "test"
    cohort.table.loc[first[:TRAIN], "split"] = "train"
    cohort.table.loc[first[TRAIN : TRAIN + VAL], "split"] = "val"
    return cohort


def job_of(dataset: str, build: Path = BUILD, sizes: Sequence[int] = (RESOLUTION,)) -> Job:
    """The data set prepared as a sweep prepares it, at edges of so many pixels."""
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.data.tasks import load_task

    cohort = cohort_of(dataset)
    ray = start_ray()
    shards = prepare(cohort, str(build), list(sizes))
    ray.shutdown()
    findings = load_task("auto" if dataset == "nih384" else "task1", cohort.findings).findings
    return job(build / dataset, cohort, shards, findings, threads=1)


def member(shared: Job, epochs: int, seed: int) -> np.ndarray:
    """Probabilities [N, C] of the test images by a training of so many epochs."""
    from cxrlt_ray.runs.trial_config import TrialConfig

    config = TrialConfig(
        backbone="tf_efficientnet_lite0", resolution=RESOLUTION, epochs=epochs, lr=1e-3, augment=0.2,
        ema_decay=0.99, seed=seed,
    )  # fmt: skip
    return test_scores(shared, f"{epochs}-{seed}", config)


def test_scores(shared: Job, name: str, config: TrialConfig) -> np.ndarray:
    """Probabilities [N, C] of the test images by a training, that is done unless it is kept."""
    from cxrlt_ray import models
    from cxrlt_ray.training.job import images_of, manifest_of
    from cxrlt_ray.training.trial import train
    from cxrlt_ray.training.validation import predict_images

    path = Path(shared.run.uri) / f"{name}.npy"
    if not path.exists():
        train(shared, name, config, {"seed": config.seed}, lambda report: None)
        model = models.load(Path(shared.run.uri) / "trials" / name / "fold-0")[0]
        manifest = manifest_of(shared.run)
        test = images_of(manifest, shared.findings).at(np.flatnonzero(manifest.table["split"] == "test"))
        np.save(path, predict_images(shared, config, model, test))
        print(f"{Path(shared.run.uri).name}: {name}", flush=True)
    scores: np.ndarray = np.load(path)
    return scores


def ways(budget: int) -> list[tuple[int, int]]:
    """(members, epochs) that spend a budget."""
    return [(budget // epochs, epochs) for epochs in LENGTHS if budget // epochs in range(1, LENGTHS[epochs] + 1)]


def rows_of(dataset: str) -> list[list[str]]:
    """Train what is missing; a row a budget and way."""
    from cxrlt_ray.training.job import manifest_of

    shared = job_of(dataset)
    members = {epochs: [member(shared, epochs, seed) for seed in range(count)] for epochs, count in LENGTHS.items()}
    test = manifest_of(shared.run).of_split("test")
    targets, groups = test.targets(shared.findings), test.table["subject_id"].to_numpy().astype(str)
    rows = []
    for budget in LENGTHS:
        ensembles = {}
        for count, epochs in ways(budget):
            groups_of = list(itertools.combinations(range(LENGTHS[epochs]), count))[:: max(1, LENGTHS[epochs] // 2)]
            ensembles[count, epochs] = [np.mean([members[epochs][k] for k in some], axis=0) for some in groups_of[:6]]
        result = paired(ensembles, targets, groups)
        for (count, epochs), values in result.values.items():
            row = [dataset, str(budget), f"{count} x {epochs}", f"{values.mean():.3f}"]
            rows.append([*row, result.gain((count, epochs), (1, budget)) if count > 1 else ""])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["phantom", "nih384"], choices=["nih384", "phantom"])
    parser.add_argument("--write", action="store_true", help="put the section into RESULTS.md")
    args = parser.parse_args()
    heads = ["data", "epochs in all", "members x epochs", "test mAP of their mean", "above one training"]
    rows = [heads, ["---"] * len(heads), *(row for dataset in args.data for row in rows_of(dataset))]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    publish("lengths", "Few long trainings or many short ones", ".", lines, args.write)


if __name__ == "__main__":
    main()
