"""How large a run's report is and how long it takes, on synthetic runs: records and predictions are drawn, not trained.

    python benchmarks/page.py --write

Each run has its page written in a process of its own, imports included: wall clock, CPU seconds, and bytes of the page.
Goals: 60 trials of 40 findings in 10 s and 2 MB, 500 trials in a minute.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from report import options, publish

from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.data.tasks import TASK1, Task
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.runs.records import EpochRecord, RunRecord, TrialRecord
from cxrlt_ray.runs.store import Run
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store

SPLITS = ("train", "val", "test")
BACKBONES = ("test_convnext", "test_resnet")
MEMBERS = 16  # of the ensemble
SIZES = ((60, 10.0), (500, 60.0))  # trials, and the goal in seconds
BYTES = 2e6  # goal of 60 trials


def drawn_manifest(images: int, findings: Sequence[str], seed: int) -> Manifest:
    """`images` of each split, two of a subject, whose findings are rarer and rarer: 30 % down to 0.5 %."""
    rng = np.random.default_rng(seed)
    count = images * len(SPLITS)
    shares = np.geomspace(0.3, 0.005, len(findings))
    table = pd.DataFrame([dict.fromkeys(META)] * count)
    table["image_id"] = [f"image-{n}" for n in range(count)]
    table["study_id"] = table["image_id"].str.replace("image", "study")
    table["subject_id"] = [f"subject-{n // 2}" for n in range(count)]
    table["split"] = np.repeat(SPLITS, images)
    table["view"], table["path"] = rng.choice(["PA", "AP", "LATERAL"], count), "drawn.jpg"
    table["sex"] = [("F", "M")[n // 2 % 2] for n in range(count)]
    table["age"] = [float(20 + n // 4 % 60) for n in range(count)]
    labels = pd.DataFrame((rng.random((count, len(findings))) < shares).astype(np.int8), columns=list(findings))
    table = pd.concat([table, labels.astype("Int8")], axis=1)
    return Manifest(table, tuple(findings), "table", "drawn")


def write_run(
    storage: Path, trials: int, findings: Sequence[str] = TASK1, images: int = 400, name: str = "drawn", seed: int = 0
) -> Run:
    """A run as a sweep would leave it, a third of its trials pruned: records, manifest, predictions, empty weights."""
    rng = np.random.default_rng(seed)
    manifest = drawn_manifest(images, findings, seed)
    store = Store(str(storage / name))
    with store.place("manifest.parquet") as path:
        manifest.write(path)
    task = Task("drawn", tuple(findings))
    fingerprint = manifest.fingerprint
    run = Run(store, RunRecord(name=name, created="2026-11-29T10:00:00.000+00:00", task=task, fingerprint=fingerprint))
    record = run.record.model_copy(update={"trials": trials, "epochs": 6, "space": "drawn", "data": "/data/drawn"})
    run.write(record)
    targets = manifest.targets(tuple(findings))
    for number in range(trials):
        skill = rng.uniform(0.5, 2.5)
        logits = skill * targets - 3 + rng.normal(0, 1, targets.shape)
        _write_trial(run, manifest, number, 1 / (1 + np.exp(-logits)), skill, rng)
    return Run(store, record)


def _write_trial(
    run: Run, manifest: Manifest, number: int, scores: np.ndarray, skill: float, rng: np.random.Generator
) -> None:
    store = run.store / "trials" / f"T{number:04d}"
    pruned = number % 3 == 2
    for split in SPLITS[1:]:
        rows = (manifest.table["split"] == split).to_numpy()
        ids = manifest.table["image_id"].to_numpy()[rows]
        of_split = Predictions(ids, scores[rows].astype(np.float32), manifest.findings, split, manifest.fingerprint)
        of_split.write(store, f"predictions/{split}.parquet")
    store.write("fold-0/model.safetensors", b"drawn")
    params = {
        "backbone": BACKBONES[number % 2],
        "lr": float(10 ** rng.uniform(-4, -2)),
        "weight_decay": float(10 ** rng.uniform(-3, -1)),
        "augment": float(rng.uniform(0, 0.6)),
        "loss": ("bce", "asl")[number % 5 % 2],
    }
    curve = skill / 5 * (1 - 0.5 ** np.arange(1, 3 if pruned else 7))
    epochs = [
        EpochRecord(fold=0, stage=0, epoch=k, score=float(score), loss=0.2, images_per_second=100.0)
        for k, score in enumerate(curve)
    ]
    TrialRecord(
        name=f"T{number:04d}",
        state="pruned" if pruned else "finished",
        params=params,
        config=TrialConfig.model_validate({**params, "resolution": 32, "epochs": 6, "pretrained": False}),
        score=float(curve[-1]),
        findings=manifest.findings,
        trained_findings=manifest.findings,
        fingerprint=manifest.fingerprint,
        weights="none",
        began=1795914486.0 + 100 * number,
        ended=1795914486.0 + 100 * number + float(rng.uniform(30, 90)),
        epochs=epochs,
        stage=0,
        best_epoch=len(epochs) - 1,
        images_per_second=100.0,
        flops=200_000_000,
        seconds={"training": 40.0, "validation": 5.0},
    ).write(store, "trial.json")


def write_ensemble(
    storage: Path, name: str = "drawn", members: int = MEMBERS, rounds: int = 100, calibrate: bool = False
) -> None:
    """The ensemble of the best `members` trials, by the command's own code, without its report.

    calibrate: calibrated, with thresholds of two aims.
    """
    from cxrlt_ray import ensemble

    path = storage / "best.yaml"
    path.write_text(f"selector: topk_mean\nsettings: {{k: {members}}}\nguard: .inf\n")
    more = {"calibrate": True, "thresholds": ["f1", "sensitivity=0.8"]} if calibrate else {}
    request = ensemble.EnsembleRequest(
        select=str(path), storage=str(storage), run=name, rounds=rounds, report=False, score_all=True, **more
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ensemble.run(request)


def measured(storage: Path) -> dict[str, float]:
    """Seconds and CPU seconds of writing the page in a new process, and its bytes."""
    out = storage / "page.html"
    words = ["-m", "cxrlt_ray.report", "--storage", str(storage), "--run", "drawn", "--out", str(out)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": worked, "bytes": float(out.stat().st_size)}


def main() -> None:
    """Measure and publish."""
    parser = options(__doc__, {"images": 1000})
    given = parser.parse_args()
    lines = ["| trials | findings | seconds | CPU seconds | page, MB |", "|---|---|---|---|---|"]
    rows = []
    for trials, goal in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            storage = Path(folder)
            write_run(storage, trials, images=given.images)
            write_ensemble(storage, calibrate=True)
            first = measured(storage)
        print(json.dumps({"trials": trials, **first}), flush=True)
        size = first["bytes"] / 1e6
        figures = f"{first['seconds']:.1f} | {first['cpu']:.1f} | {size:.2f}"
        lines.append(f"| {trials} | {len(TASK1)} | {figures} |")
        limit = f"{goal:.0f} s" + (f", {BYTES / 1e6:.0f} MB" if trials == SIZES[0][0] else "")
        work = f"report page of {trials} trials of {len(TASK1)} findings"
        rows.append((work, "goal", f"{first['seconds']:.1f} s, {size:.2f} MB", limit))
    conditions = f", {given.images:,} images of each split, a calibrated ensemble of {MEMBERS}."
    publish("page", "A run's report page", conditions, lines, given.write, rows)


if __name__ == "__main__":
    main()
