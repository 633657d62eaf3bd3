"""Time and memory of every stage at 1,000, 10,000 and 100,000 images: linear or better, the driver's memory flat.

The cohort is a labels.csv of random labels whose rows share 1,000 small JPEGs (128 px), so that what grows is our own
work and not the disk; a tenth each validates and is tested. Every stage is a process of its own; seconds are the
stage's own, without Python's and Ray's start; memory is the driver's peak beyond what it had before the stage.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cache import BUILD, images, job
from report import options, publish

if TYPE_CHECKING:
    from cxrlt_ray.data.manifest import Manifest

FINDINGS, SIZE, MEMBERS = 14, 64, 8
STAGES = ("cohort", "prepare", "stream", "train", "score", "select", "submit")
DESCRIPTIONS = {
    "cohort": "read and check the cohort, split it",
    "prepare": f"originals to {SIZE} px shards, Ray Data on 2 cores",
    "stream": "an epoch of batches, shuffled and augmented",
    "train": "train and validate test_convnext for an epoch",
    "score": "score the test images",
    "select": f"greedy on validation, {MEMBERS} members, cross-fitted",
    "submit": "build, check and score the submission",
}


def cohort_folder(count: int) -> Path:
    """A labels.csv with `count` rows over 1,000 images."""
    import pandas as pd

    folder, source = BUILD / f"growth-{count}", images(1000, 128)
    if (folder / "images").is_symlink():  # of an earlier version: the package follows no link out of the data's root
        (folder / "images").unlink()
    if not (folder / "images").exists():
        shutil.copytree(source, folder / "images", copy_function=os.link)
    if not (folder / "labels.csv").exists():
        rng = np.random.default_rng(0)
        names = sorted(path.name for path in source.glob("*.jpg"))
        rows = np.arange(count)
        table = pd.DataFrame({"image_id": [f"i{k:07d}" for k in rows], "subject_id": [f"s{k // 2}" for k in rows]})
        table["path"] = [f"images/{names[k % len(names)]}" for k in rows]
        table["split"] = np.array(["train"] * 8 + ["val", "test"])[(rows // 2) % 10]
        for c in range(FINDINGS):
            table[f"finding {c}"] = (rng.random(count) < 0.3 / (c + 1)).astype(int)
        table.to_csv(folder / "labels.csv", index=False)
    return folder


def stage(name: str, count: int) -> None:
    """Run one stage and print its seconds and memory."""
    folder = cohort_folder(count)
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.prepare import prepare

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    if name == "cohort":
        read_cohort(str(cohort_folder(1000)), task="auto")  # imports
        before, start = peak(), time.perf_counter()
        read_cohort(str(folder), task="auto")
        print(json.dumps({"seconds": time.perf_counter() - start, "memory": peak() - before}))
        return
    manifest = read_cohort(str(folder), task="auto").manifest
    if name in ("prepare", "score"):
        start_ray()
    if name == "prepare":
        import ray

        prepare(
            read_cohort(str(cohort_folder(1000)), task="auto").manifest,
            str(BUILD / "growth-warm"),
            [SIZE],
            say=lambda _: None,
        )
        shutil.rmtree(BUILD / "growth" / str(count), ignore_errors=True)
        assert ray.is_initialized()
    run = prepared(name, count, manifest)
    before, start = peak(), time.perf_counter()
    run()
    print(json.dumps({"seconds": time.perf_counter() - start, "memory": peak() - before}))


def prepared(name: str, count: int, manifest: Manifest) -> Callable[[], object]:
    """The stage as a function without arguments, its inputs ready."""
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.storage import Store

    home = BUILD / "growth" / str(count)
    if name == "prepare":
        return lambda: prepare(manifest, str(home), [SIZE], say=lambda _: None)
    (shards,) = prepare(manifest, str(home), [SIZE], say=lambda _: None)
    ids = {split: manifest.of_split(split).table["image_id"].to_numpy() for split in ("train", "val", "test")}
    if name == "stream":
        from cxrlt_ray.data.stream import batches

        next(batches(shards, ids["train"][:100], SIZE, 64, seed=0, augment=0.3))  # imports

        def run() -> None:
            for _ in batches(shards, ids["train"], SIZE, 64, seed=0, augment=0.3, flip=0.5):
                pass

        return run
    store = Store(str(home / "run"))
    if name == "train":
        from cxrlt_ray.runs.trial_config import TrialConfig
        from cxrlt_ray.training.trial import train

        shared = job(home / "run", manifest, (shards,))
        config = TrialConfig(backbone="test_convnext", resolution=SIZE, epochs=1, pretrained=False)
        return lambda: train(shared, "T0000", config, {}, lambda _: None)
    if name == "score":
        from cxrlt_ray.ensembling.score import member, score
        from cxrlt_ray.runs.store import read_trial

        scorer = member(read_trial(store / "trials" / "T0000"))
        work, table = Store(str(home / "scoring")), manifest.of_split("test").table
        if work.exists(""):
            work.remove()
        score(Store(str(home / "warm")), (shards,), [scorer], table[:10])
        Store(str(home / "warm")).remove()
        return lambda: score(work, (shards,), [scorer], table)
    part = manifest.of_split("val" if name == "select" else "test")
    targets = part.targets()
    rng = np.random.default_rng(0)
    if name == "select":
        from cxrlt_ray.selection import greedy
        from cxrlt_ray.selection.honest import fit
        from cxrlt_ray.selection.method import Method

        shape = (MEMBERS, *targets.shape)
        scores = (0.3 * rng.random(shape) + 0.2 * targets + 0.2 * rng.random(shape) ** 2).astype(np.float32)
        groups = part.table["subject_id"].to_numpy()
        greedy(scores[:, :200], targets[:200], groups[:200])  # compiles
        return lambda: fit(Method("greedy"), scores, targets, groups)
    from cxrlt_ray.data.tasks import Task
    from cxrlt_ray.ensembling import submission
    from cxrlt_ray.evaluation.metrics import per_finding

    scores = np.clip(0.3 * targets + 0.7 * rng.random(targets.shape), 0, 1)
    task = Task("growth", manifest.findings, "test")

    def submit() -> None:
        submission.write(store, submission.build(ids["test"], scores, manifest.findings), task, ids["test"])
        per_finding(targets, scores, ("ap",))

    return submit


def keep(scheduler: str, count: int) -> None:
    """Run trials that do no work one after the other, and print the driver's bytes a trial and seconds in all."""
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    from cxrlt_ray.cluster import ray_private
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.search.asha import ForgetfulScheduler
    from cxrlt_ray.search.tuner import _quieten

    memory: list[int] = []

    class Sampled(tune.Callback):
        def on_trial_complete(self, **info: object) -> None:
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    class Point(tune.search.Searcher):
        def suggest(self, trial_id: str) -> dict[str, object]:
            return {"number": len(memory), "params": {f"p{k}": 0.1 * k for k in range(12)}, "seed": 0}

        def on_trial_complete(self, trial_id: str, result: object = None, error: bool = False) -> None:
            pass

    def trial(point: dict[str, object]) -> None:
        for epoch in range(3):
            tune.report({"epoch": epoch + 1, "val_map": 0.1, "images_per_second": 1.0})

    own = scheduler == "ours"
    callbacks = [Sampled(), *([ray_private.silent_progress()] if own else [])]
    _quieten()
    start_ray()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(trial, {"CPU": 1}),
            tune_config=tune.TuneConfig(
                metric="val_map",
                mode="max",
                search_alg=Point(),
                scheduler=ForgetfulScheduler() if own else FIFOScheduler(),
                num_samples=count,
                max_concurrent_trials=1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=folder, name="tune", verbose=0, callbacks=callbacks),
        ).fit()
    grown = np.polyfit(np.arange(len(memory))[count // 3 :], memory[count // 3 :], 1)[0]
    print(json.dumps({"bytes": grown, "trials": len(memory), "seconds": time.perf_counter() - start}))


def kept_by_tune(count: int) -> list[str]:
    """A table of what the driver keeps of each trial with Tune's own scheduler and with ours."""
    lines = ["| scheduler | KiB a trial in the driver | MiB of 10,000 trials | s |", "|---|---|---|---|"]
    titles = {"tune's": "Tune's own: every trial is kept", "ours": "ours: ended trials leave Tune's state"}
    for name, title in titles.items():
        command = [sys.executable, __file__, "--keep", name, str(count)]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        measured = json.loads(output.splitlines()[-1])
        kilobytes = measured["bytes"] / 1024
        lines.append(f"| {title} | {kilobytes:,.1f} | {kilobytes * 10_000 / 1024:,.0f} | {measured['seconds']:,.0f} |")
    return lines


def planned() -> list[str]:
    """What `sweep --plan` says of the challenge's images and of 10 million, in a store without measured rates."""
    import tempfile

    parts = []
    for count in (377_110, 10_000_000):
        with tempfile.TemporaryDirectory() as folder:
            options = f"task1 --space task1 --trials 60 --plan --gpu H100 --images {count}"
            command = [sys.executable, "-m", "cxrlt_ray.sweep", *options.split(), "--storage", folder]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        start = output.index("Prepare, once")
        lines = [line.rstrip() for line in output[start:].splitlines() if "cpu-" not in line and line.strip()]
        parts += [f"`python -m cxrlt_ray.sweep {options}` (GPU rates estimated):", "", "```", *lines[:-1], "```", ""]
    return parts[:-1]


def main() -> None:
    if sys.argv[1:2] == ["--stage"]:
        stage(sys.argv[2], int(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--keep"]:
        keep(sys.argv[2], int(sys.argv[3]))
        return
    args = options(__doc__, {"most": 100_000, "tune": 0}).parse_args()
    if args.tune:
        conditions = f": {args.tune:,} trials that report three times and do no work, one at a time in one process."
        publish("kept", "What Tune keeps of a trial", conditions, kept_by_tune(args.tune), args.write)
        return
    counts = [count for count in (1_000, 10_000, 100_000, 1_000_000) if count <= args.most]
    lines = [
        f"| stage | {' | '.join(f'{count:,} images, s' for count in counts)} | time for 10 times the images | "
        f"{' | '.join(f'{count:,}: MB' for count in counts)} |",
        "|---|" + "---|" * (2 * len(counts) + 1),
    ]
    for name in STAGES:
        measured = []
        for count in counts:
            command = [sys.executable, __file__, "--stage", name, str(count)]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            measured.append(json.loads(output.splitlines()[-1]))
            print(f"{name} {count:,}: {measured[-1]}", flush=True)
        seconds, memory = [m["seconds"] for m in measured], [m["memory"] / 1e6 for m in measured]
        growth = ", ".join(f"x {b / a:.1f}" for a, b in itertools.pairwise(seconds))
        cells = [DESCRIPTIONS[name], *(f"{s:,.2f}" for s in seconds), growth, *(f"{m:,.0f}" for m in memory)]
        lines.append(f"| {' | '.join(cells)} |")
    conditions = f": {FINDINGS} findings; what grows is the number of images only."
    publish("growth", "Growth", conditions, lines, args.write)
    publish("plan", "Planned, not run", ":", planned(), args.write)


if __name__ == "__main__":
    main()
