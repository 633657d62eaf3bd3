"""Peer of benchmarks/job.py: what Ray's documentation shows, written as a careful user would.

python benchmarks/job_ray_docs.py COHORT.csv SECONDS SEED OUT.npy

`read_images` -> `map_batches` -> `TorchTrainer` in a Tune trial, a search by OptunaSearch with ASHA until the time is
over, the same timm backbone and weights as the others', and the mean of the best three trials by validation mAP. Images
are decoded and resized once (materialized); a trial's best epoch is kept. COHORT.csv as for job_timm.py.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import ray
import ray.train
import torch
from job_timm import BATCH, CROP, EDGE, META, batch_of, network, predict, score, table_of
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torchvision.transforms import v2

EPOCHS, MEMBERS = 12, 3


def dataset(rows: pd.DataFrame, findings: list[str]) -> ray.data.Dataset:
    """Image uint8 [EDGE, EDGE], target float32 [C] and the row's number, decoded once."""
    number = {path: k for k, path in enumerate(rows["path"])}
    targets = rows[findings].to_numpy(np.float32)

    def labelled(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        places = np.array([number[path] for path in batch["path"]])
        return {"image": batch["image"], "target": targets[places], "row": places}

    images = ray.data.read_images(rows["path"].tolist(), size=(EDGE, EDGE), mode="L", include_paths=True)
    return images.map_batches(labelled).materialize()


def whole(name: str) -> tuple[torch.Tensor, np.ndarray]:
    """All images of a data set uint8 [N, 1, EDGE, EDGE] and their targets, in the rows' order."""
    parts = list(ray.train.get_dataset_shard(name).iter_batches(batch_size=256))
    order = np.argsort(np.concatenate([part["row"] for part in parts]))
    images = np.concatenate([part["image"] for part in parts])[order]
    return torch.from_numpy(images)[:, None], np.concatenate([part["target"] for part in parts])[order].astype(int)


def train(config: dict) -> None:
    """One trial, on one worker."""
    torch.manual_seed(config["seed"])
    val, test, shard = whole("val"), whole("test"), ray.train.get_dataset_shard("train")
    model = ray.train.torch.prepare_model(network(val[1].shape[1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    augment = v2.Compose([v2.RandomRotation(config["rotation"]), v2.RandomCrop(CROP), v2.RandomHorizontalFlip()])
    loss_of, best, kept = torch.nn.BCEWithLogitsLoss(), -1.0, None
    for epoch in range(EPOCHS):
        model.train()
        for batch in shard.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=1024, drop_last=True):
            shown = torch.stack([augment(image[None]) for image in batch["image"]])
            loss_of(model(batch_of(shown)), batch["target"]).backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
        reached = score(val[1], predict(model, val[0]))
        if reached > best:
            best, kept = reached, copy.deepcopy(model)
            np.save(Path(config["folder"]) / f"{config['number']}.npy", predict(kept, test[0], flips=True))
            (Path(config["folder"]) / f"{config['number']}.txt").write_text(f"{best}")
        ray.train.report({"map": best, "epoch": epoch + 1})


def trial(config: dict, parts: dict) -> None:
    """A Tune trial: the driver of a worker group."""
    trial_id = tune.get_context().get_trial_id()
    TorchTrainer(
        train,
        train_loop_config={**config, "number": trial_id},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=trial_id, storage_path=config["folder"], callbacks=[TuneReportCallback()]),
        datasets=parts,
    ).fit()


def main() -> None:
    cohort, seconds, seed, out = sys.argv[1:]
    until = time.monotonic() + float(seconds)
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    table = table_of(cohort)
    findings = [name for name in table.columns if name not in META]
    parts = {name: dataset(table[table["split"] == name], findings) for name in ("train", "val", "test")}
    with tempfile.TemporaryDirectory() as folder:
        space = {"lr": tune.loguniform(3e-4, 3e-3), "weight_decay": tune.loguniform(1e-3, 1e-1)}
        space |= {"rotation": tune.uniform(0, 15), "seed": int(seed), "folder": folder}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, parts=parts), {"CPU": 0.1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="map",
                mode="max",
                num_samples=-1,
                max_concurrent_trials=1,
                search_alg=OptunaSearch(seed=int(seed)),
                scheduler=ASHAScheduler(time_attr="epoch", max_t=EPOCHS, grace_period=2, reduction_factor=3),
                time_budget_s=until - time.monotonic(),
            ),
            run_config=tune.RunConfig(storage_path=folder, name="tune", verbose=0),
        )
        tuner.fit()
        trials = sorted(Path(folder).glob("*.txt"), key=lambda path: -float(path.read_text()))
        print(f"{len(trials)} trials, best validation mAP {trials[0].read_text()}", flush=True)
        np.save(out, np.mean([np.load(path.with_suffix(".npy")) for path in trials[:MEMBERS]], axis=0))


if __name__ == "__main__":
    main()
