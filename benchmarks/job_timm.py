"""Peer of benchmarks/job.py: one fine-tuning with timm as a careful user writes it, for so many seconds.

python benchmarks/job_timm.py COHORT.csv SECONDS SEED OUT.npy

Images are decoded once and kept in memory at 128 px; random crops to 112 px with flips and small rotations; AdamW under
a one-cycle schedule over the whole time, whose steps are known from the rate of the first ones; timm's EMA; the epoch
that is best on the validation images scores the test images, with flips. COHORT.csv: path, split, then a 0/1 column a
finding.
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import timm
import torch
from sklearn.metrics import average_precision_score
from timm.utils import ModelEmaV3
from torchvision.transforms import v2

EDGE, CROP, BATCH, LR = 128, 112, 16, 1.4e-3
MEAN, STD = 127 / 255, 128 / 255  # of these weights
META = ("image_id", "path", "subject_id", "study_id", "view", "split")


def images_of(paths: list[str]) -> torch.Tensor:
    """uint8 [N, 1, EDGE, EDGE]."""
    read = (cv2.imread(path, cv2.IMREAD_GRAYSCALE) for path in paths)
    small = [cv2.resize(image, (EDGE, EDGE), interpolation=cv2.INTER_AREA) for image in read]
    return torch.from_numpy(np.stack(small))[:, None]


def network(findings: int) -> torch.nn.Module:
    """ImageNet weights of the package that the laptop space takes too."""
    from cxrlt_ray import models

    source = models.build(models.ModelSpec("tf_efficientnet_lite0", CROP), ["finding"] * findings).backbone.state_dict()
    model = timm.create_model("tf_efficientnet_lite0", num_classes=findings)
    missing = model.load_state_dict(source, strict=False).missing_keys
    assert set(missing) <= {"classifier.weight", "classifier.bias"}, missing
    return model.to(memory_format=torch.channels_last)


def batch_of(images: torch.Tensor) -> torch.Tensor:
    """float32 [B, 3, CROP, CROP] of uint8 images at EDGE or CROP."""
    return ((images.float() / 255 - MEAN) / STD).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict(model: torch.nn.Module, images: torch.Tensor, flips: bool = False) -> np.ndarray:
    """Probabilities [N, C] of the central crops, or their mean with the mirrored ones'."""
    model.eval()
    edge = (EDGE - CROP) // 2
    central = images[..., edge : edge + CROP, edge : edge + CROP]
    scores = [model(batch_of(part)).sigmoid() for part in central.split(64)]
    if flips:
        mirrored = [model(batch_of(part.flip(-1))).sigmoid() for part in central.split(64)]
        scores = [(a + b) / 2 for a, b in zip(scores, mirrored, strict=True)]
    return torch.cat(scores).numpy()


def score(targets: np.ndarray, scores: np.ndarray) -> float:
    """MAP of the findings that occur."""
    occur = targets.any(axis=0)
    return float(average_precision_score(targets[:, occur], scores[:, occur], average="macro"))


def train(images: torch.Tensor, targets: torch.Tensor, val: tuple[torch.Tensor, np.ndarray], until: float, seed: int):
    """The averaged network of the best epoch."""
    torch.manual_seed(seed)
    model = network(targets.shape[1])
    ema = ModelEmaV3(model, decay=0.99, use_warmup=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    augment = v2.Compose([v2.RandomRotation(8), v2.RandomCrop(CROP), v2.RandomHorizontalFlip()])
    loss_of = torch.nn.BCEWithLogitsLoss()

    def step(rows: torch.Tensor) -> None:
        shown = torch.stack([augment(image) for image in images[rows]])
        model.train()
        loss_of(model(batch_of(shown)), targets[rows]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for _ in range(6):  # slower than those that follow
        step(torch.randint(len(images), (BATCH,)))
    begun = time.monotonic()
    for _ in range(12):  # how long an epoch takes, its validation included
        step(torch.randint(len(images), (BATCH,)))
    rate = (time.monotonic() - begun) / 12
    begun = time.monotonic()
    predict(model, val[0])
    steps = len(images) // BATCH
    epochs = max(1, int((until - time.monotonic()) / (steps * rate + time.monotonic() - begun)))
    model.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * steps + 1)
    best, kept = -1.0, None
    for epoch in range(epochs):
        for rows in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            step(rows)
            schedule.step()
            ema.update(model, step=schedule.last_epoch)
        reached = score(val[1], predict(ema.module, val[0]))
        print(f"epoch {epoch + 1}/{epochs}: validation mAP {reached:.4f}", flush=True)
        if reached > best:
            best, kept = reached, copy.deepcopy(ema.module)
        if time.monotonic() > until:
            break
    return kept


def table_of(cohort: str) -> pd.DataFrame:
    """The cohort's table; its images lie below its folder."""
    table = pd.read_csv(cohort)
    table["path"] = [str(Path(cohort).parent / path) for path in table["path"]]
    return table


def main() -> None:
    cohort, seconds, seed, out = sys.argv[1:]
    until = time.monotonic() + float(seconds)
    torch.set_num_threads(2)
    table = table_of(cohort)
    findings = [name for name in table.columns if name not in META]
    split = {name: table[table["split"] == name] for name in ("train", "val", "test")}
    images = {name: images_of(rows["path"].tolist()) for name, rows in split.items()}
    val = (images["val"], split["val"][findings].to_numpy(int))
    targets = torch.tensor(split["train"][findings].to_numpy(np.float32))
    model = train(images["train"], targets, val, until, int(seed))
    np.save(out, predict(model, images["test"], flips=True))


if __name__ == "__main__":
    main()
