"""What self-supervised pretraining gives a linear probe, on drawn X-rays at 64 px with a tiny vision transformer.

A logistic regression on frozen features finds the task's findings: features of the transformer as it begins (random),
after MAE, after DINOv2, and, without any network, the first 100 principal components of the pixels; beside them the
same transformer fine-tuned from scratch on the labels. All see the same training images; a probe's strength is chosen
on validation images; test mAP with the gain over the random beginning, its interval by subject, seeds together. The bar
of issue 25 is MAE's gain. In an earlier miniature the pixels' components won.

Finished pieces stay in build/pretraining: cut it, run it again, and it goes on (trials from their last epoch).

    python benchmarks/pretraining.py --write    # --images 400 --seeds 1 --mae 2 --dinov2 1 --scratch 2 for a first look
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cache import job
from paired import paired
from report import options, publish

if TYPE_CHECKING:
    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.models import Classifier
    from cxrlt_ray.training.job import Images, Job

BUILD = Path(__file__).parent.parent / "build" / "pretraining"
SIZE, COMPONENTS, BATCH = 64, 100, 256
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the probe: C
ARMS = {
    "random": "random beginning",
    "mae": "MAE",
    "dinov2": "DINOv2",
    "pixels": f"pixels, {COMPONENTS} components",
    "scratch": "fine-tuned from scratch",
}
# 64 patches of 8 px and a class token: 2.7 M parameters
TRANSFORMER = {"architecture": "vit_tiny_patch16_224", "model_args": {"patch_size": 8, "depth": 6}}
PLAIN: dict[str, Any] = {"pretrained": False, "resolution": SIZE, "batch_size": 64, "augment": 0.0, "flip": 0.0}
CHANGES: dict[str, dict[str, Any]] = {
    "mae": {"lr": 1.5e-3, "weight_decay": 0.05, "objective_settings": {"mae_width": 128, "mae_depth": 2}},
    "dinov2": {
        "lr": 5e-4,
        "weight_decay": 0.04,
        "weight_decay_end": 0.2,
        "clip_norm": 3.0,
        "objective_settings": {
            "dinov2_prototypes": 1024,
            "dinov2_hidden": 512,
            "dinov2_bottleneck": 128,
            "dinov2_local_crops": 4,
            "dinov2_balance": 2,
        },
    },
    "scratch": {"lr": 1e-3, "objective": "multilabel", "augment": 0.3},
}


@dataclass(frozen=True)
class Cohort:
    """The drawn images: what trials share, and images of each role with their labels; subjects of the test images."""

    job: Job
    train: Images
    val: Images
    test: Images
    subjects: np.ndarray


def cohort(images: int, folder: Path) -> Cohort:
    """Draw and prepare them, once."""
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.data.shards import QUALITY, SUMMARY, shards_store
    from cxrlt_ray.data.tasks import load_task
    from cxrlt_ray.phantom import write_phantom
    from cxrlt_ray.training.job import images_of, training_images, validation_images

    write_phantom(str(folder / "phantom"), images=images, size=128, seed=0)
    manifest = read_cohort(str(folder / "phantom"), task="task1").manifest
    if not shards_store(manifest, str(folder), SIZE, QUALITY).exists(SUMMARY):
        start_ray()
    findings = load_task("task1", manifest.findings).findings
    shared = job(folder / "run", manifest, prepare(manifest, str(folder), [SIZE]), findings, threads=2)
    test, subjects = _test(manifest, findings, images_of)
    return Cohort(shared, training_images(manifest, shared, 0), validation_images(manifest, shared, 0), test, subjects)


def _test(manifest: Manifest, findings: tuple[str, ...], images_of: Any) -> tuple[Images, np.ndarray]:
    part = manifest.of_split("test")
    return images_of(part, findings), part.table["subject_id"].to_numpy()


def backbone(folder: Path) -> str:
    """The tiny transformer, as a folder that timm reads."""
    at = folder / "transformer"
    at.mkdir(parents=True, exist_ok=True)
    (at / "config.json").write_text(
        json.dumps({**TRANSFORMER, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}})
    )
    return f"local-dir:{at}"


def trained(shared: Job, arm: str, seed: int, epochs: int, folder: Path) -> Classifier:
    """The classifier of a trial, trained or taken up where it was cut."""
    from cxrlt_ray import models
    from cxrlt_ray.runs.trial_config import TrialConfig
    from cxrlt_ray.training.trial import train

    name = f"{arm}-{seed}-{epochs}"
    fields = {**PLAIN, "backbone": backbone(folder), "objective": arm, **CHANGES[arm], "epochs": epochs, "seed": seed}
    train(shared, name, TrialConfig(**fields), {}, lambda report: print(f"{name}: {report}", flush=True))
    with (shared.run / "trials" / name).fetched("fold-0") as kept:
        return models.load(kept)[0]


def scores(data: Cohort, arm: str, seed: int, epochs: int, folder: Path) -> np.ndarray:
    """Probabilities of the test images [N, C]."""
    import torch

    from cxrlt_ray import models
    from cxrlt_ray.models import ModelSpec
    from cxrlt_ray.runs.trial_config import TrialConfig
    from cxrlt_ray.training.validation import predict_images

    if arm == "pixels":
        train, val, test = _components(data, seed)
        return probe(train, val, test, data)
    if arm == "random":
        torch.manual_seed(seed)
        model = models.build(ModelSpec(backbone(folder), SIZE, pretrained=False), data.job.trained)
    else:
        model = trained(data.job, arm, seed, epochs, folder)
    if arm == "scratch":
        config = TrialConfig(**{**PLAIN, "backbone": backbone(folder), "epochs": 1})
        return predict_images(data.job, config, model, data.test)
    model.eval()
    train, val, test = (features(data.job, model, images) for images in (data.train, data.val, data.test))
    return probe(train, val, test, data)


def pixels(shared: Job, images: Images) -> np.ndarray:
    """uint8 [N, SIZE, SIZE], in their order."""
    from cxrlt_ray.data.stream import batches

    values = np.zeros((len(images), SIZE, SIZE), np.uint8)
    for batch in batches(shared.shards[0], images.image_id, SIZE, BATCH):
        values[batch.rows] = batch.images
    return values


def features(shared: Job, model: Classifier, images: Images) -> np.ndarray:
    """The class token beside the mean of the patches, as DINOv2's probe has them: [N, 2 D]."""
    import torch

    from cxrlt_ray.models.patch_tokens import patch_tokens

    rows = []
    with torch.inference_mode():
        for part in torch.from_numpy(pixels(shared, images)).split(BATCH):
            tokens = patch_tokens(model.backbone, model.normalised(part))
            rows.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1).numpy())
    return np.concatenate(rows)


def _components(data: Cohort, seed: int) -> list[np.ndarray]:
    from sklearn.decomposition import PCA

    flat = [pixels(data.job, images).reshape(len(images), -1) / 255 for images in (data.train, data.val, data.test)]
    pca = PCA(min(COMPONENTS, len(data.train) - 1), random_state=seed).fit(flat[0])
    return [pca.transform(part) for part in flat]


def probe(train: np.ndarray, val: np.ndarray, test: np.ndarray, data: Cohort) -> np.ndarray:
    """Probabilities [N, C] of a logistic regression by finding, of the strength with the best mAP on validation."""
    from sklearn.preprocessing import StandardScaler

    from cxrlt_ray.evaluation.metrics import macro
    from cxrlt_ray.selection.average_precision import precisions

    scaler = StandardScaler().fit(train)
    parts = [scaler.transform(part) for part in (train, val, test)]
    fitted = {strength: _fitted(parts, data.train.targets, strength) for strength in STRENGTHS}
    best = max(STRENGTHS, key=lambda s: macro(precisions(fitted[s][0][None], data.val.targets)[0]))
    return fitted[best][1]


def _fitted(parts: list[np.ndarray], targets: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of validation and test images by one strength; a finding's share of ones where it has one value."""
    from sklearn.linear_model import LogisticRegression

    found = [np.empty((len(part), targets.shape[1]), np.float32) for part in parts[1:]]
    for column, labels in enumerate(targets.T):
        rows = labels >= 0
        for into in found:
            into[:, column] = (labels[rows] == 1).mean() if rows.any() else 0.0
        if len(np.unique(labels[rows])) == 2:
            model = LogisticRegression(C=strength, max_iter=300).fit(parts[0][rows], labels[rows])
            for part, into in zip(parts[1:], found, strict=True):
                into[:, column] = model.predict_proba(part)[:, 1]
    return found[0], found[1]


def kept(data: Cohort, arm: str, seed: int, epochs: int, folder: Path) -> np.ndarray:
    """`scores`, from the file of an earlier run where there is one."""
    path = folder / "scores" / f"{arm}-{seed}-{epochs}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        values = scores(data, arm, seed, epochs, folder)
        np.save(path.with_suffix(".part.npy"), values)
        path.with_suffix(".part.npy").rename(path)
        print(f"{ARMS[arm]}, seed {seed}: done", flush=True)
    return np.load(path)


def minutes(data: Cohort, arm: str, seeds: int, epochs: int) -> str:
    """The minutes that the trials of an arm took, as their records have them."""
    from cxrlt_ray.runs.store import read_trial

    names = [f"{arm}-{seed}-{epochs}" for seed in range(seeds)]
    took = [sum(read_trial(data.job.run / "trials" / name).record.seconds.values()) / 60 for name in names]
    return f"{min(took):.1f}-{max(took):.1f}"


def main() -> None:
    numbers = {"images": 4000, "seeds": 3, "mae": 12, "dinov2": 4, "scratch": 12}
    args = options(__doc__, numbers).parse_args()
    folder = BUILD / str(args.images)
    data = cohort(args.images, folder)
    epochs = {arm: getattr(args, arm, 0) for arm in ARMS}
    systems = {arm: [kept(data, arm, seed, epochs[arm], folder) for seed in range(args.seeds)] for arm in ARMS}
    result = paired(systems, data.test.targets, data.subjects)
    lines = [
        "| features | test mAP, by seed | gain over the random beginning | epochs | minutes a seed |",
        "|---|---|---|---|---|",
    ]
    for arm, title in ARMS.items():
        gain = "" if arm == "random" else result.gain(arm, "random")
        by_seed = ", ".join(f"{value:.3f}" for value in result.values[arm])
        cost = [str(epochs[arm]), minutes(data, arm, args.seeds, epochs[arm])] if epochs[arm] else ["", ""]
        lines.append(f"| {' | '.join([title, f'{result.values[arm].mean():.3f} ({by_seed})', gain, *cost])} |")
    counts = f"{len(data.train):,} training, {len(data.val):,} validation and {len(data.test):,} test images"
    conditions = f": drawn images at {SIZE} px, {counts}, {len(data.job.findings)} findings, {args.seeds} seeds."
    publish("pretraining", "Self-supervised pretraining", conditions, lines, args.write)


if __name__ == "__main__":
    main()
