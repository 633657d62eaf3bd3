"""Noisy Student and its parts: what pseudo-labels of an outside cohort bring. `python benchmarks/pseudo.py --write`.

Arms, with several seeds each: `main`: trained on the main cohort alone, the baseline. `null`: with the outside cohort,
its missing cells null; this model is the teacher. `hard`, `soft`, `raw`: students of the same size, those cells filled
by class-aware thresholds, by calibrated and by raw scores. `permuted`: the soft values of each finding dealt out anew
among the images, which must not help.

A fifth of the outside subjects have all their known cells hidden in training. On those hidden cells pseudo-labels are
compared with the truth: ratio of sums (bar: its interval by subject meets .8 to 1.25 with 50 positives or more), AP,
Brier score and, of hard labels, precision.

phantom: two drawn cohorts, the outside one labelled as NIH is. nih384: real X-rays, half of the training subjects are
the outside cohort and keep every second finding. Pieces are kept in build/pseudo: a benchmark that was cut goes on.
`--minutes M` begins no piece after M minutes and shows what there is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from paired import paired
from report import options, publish

from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.data.soft_targets import SoftTargets
from cxrlt_ray.ensembling.pseudo_labels import FindingLine, calibrated_validation, lines_of, maps_of, pseudo_labels
from cxrlt_ray.ensembling.teacher import Validation
from cxrlt_ray.evaluation.parts import shares
from cxrlt_ray.evaluation.soft_labels import class_aware
from cxrlt_ray.reporting.pseudo_labels import LEAST, meets
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.training.job import Job

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "pseudo"
REAL = HERE.parents[1] / "shared" / "data" / "nih384"
BASELINE, TEACHER = "main", "null"
STUDENTS = ("hard", "soft", "raw", "permuted")
ARMS = (BASELINE, TEACHER, *STUDENTS)
HIDDEN, KEEP = 0.2, 0.8
OUTSIDE = "nih"


@dataclass(frozen=True)
class Bench:
    """A dataset as all arms see it: the job, the manifest with hidden cells, and their truth int8 [N, C] (else -1)."""

    job: Job
    manifest: Manifest
    truth: np.ndarray
    size: int
    epochs: int

    def store(self, arm: str, seed: int) -> Store:
        """The trial of an arm: a student's run has soft targets of its own."""
        run = self.job.run if arm in (BASELINE, TEACHER) else self.job.run / f"{arm}-{seed}"
        return run / "trials" / f"{arm}-{seed}"

    def config(self, arm: str, seed: int) -> TrialConfig:
        """The same model, loss and noise for all arms; what differs is the images and their labels."""
        from cxrlt_ray.objectives import losses

        return TrialConfig(
            backbone="tf_efficientnet_lite0",
            resolution=self.size,
            epochs=self.epochs,
            lr=1e-3,
            batch_size=32,
            augment=0.4,
            drop_rate=0.2,
            ema_decay=0.99,
            objective="noisy_student",
            loss="weighted_asl",
            loss_settings=losses.settings("weighted_asl"),
            cohorts="main" if arm == BASELINE else "all",
            seed=seed,
        )


def bench_of(dataset: str, images: int, size: int, epochs: int) -> Bench:
    """The dataset, drawn or read, prepared once; the fifth of outside subjects is the same for all."""
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.prepare import prepare

    folder = BUILD / f"{dataset}-{images}-{size}-{epochs}"
    manifest = _phantom(images) if dataset == "phantom" else _halved()
    table, outside = manifest.table.copy(), (manifest.cohorts != MAIN).to_numpy()
    subjects = np.unique(table["subject_id"][outside].astype(str))
    hidden = np.random.default_rng(0).permutation(subjects)[: round(HIDDEN * len(subjects))]
    rows = outside & table["subject_id"].isin(hidden).to_numpy()
    truth = np.where(rows[:, None], manifest.targets(), -1)
    for finding in manifest.findings:
        table.loc[rows, finding] = pd.NA
    manifest = replace(manifest, table=table)
    start_ray()
    shards = prepare(manifest, str(BUILD), [size])
    run = Store(str(folder)).absolute()
    with run.place("manifest.parquet") as path:
        manifest.write(path)
    job = Job(run, shards, manifest.findings, manifest.fingerprint, threads=1, gpu=False)
    return Bench(job, manifest, truth, size, epochs)


def _phantom(images: int) -> Manifest:
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.phantom import write_phantom

    folders = [BUILD / f"phantom-{images}-{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        write_phantom(str(folder), images=images, size=128, seed=seed)
    others = {OUTSIDE: f"phantom:{folders[1]}"}
    return read_cohort(str(folders[0]), task="task1", others=others).manifest


def _halved() -> Manifest:
    """nih384 with half of the training subjects as a cohort that labels every second finding."""
    from cxrlt_ray.data.cohort import read_cohort

    manifest = read_cohort(str(REAL), task="auto").manifest
    table = manifest.table.copy()
    train = np.unique(table["subject_id"][table["split"] == "train"].astype(str))
    half = np.random.default_rng(0).permutation(train)[: len(train) // 2]
    outside = table["subject_id"].isin(half).to_numpy()
    table["cohort"] = np.where(outside, OUTSIDE, MAIN)
    for finding in manifest.findings[1::2]:
        table.loc[outside, finding] = pd.NA
    return replace(manifest, table=table)


def train_arm(bench: Bench, arm: str, seed: int) -> None:
    """Train an arm's trial and score the test images; the teacher scores the outside cohort, too."""
    from cxrlt_ray import models
    from cxrlt_ray.runs.predictions import Predictions
    from cxrlt_ray.training.job import images_of
    from cxrlt_ray.training.trial import train
    from cxrlt_ray.training.validation import predict_images

    store, config, job = bench.store(arm, seed), bench.config(arm, seed), bench.job
    if arm in STUDENTS:
        run = job.run / f"{arm}-{seed}"
        with run.place("manifest.parquet") as path:
            bench.manifest.write(path)
        taught(bench, arm, seed).write(run)
        job = replace(job, run=run, soft_targets=True)
    train(job, f"{arm}-{seed}", config, {}, lambda _: None)
    model = models.load(Path(store.uri) / "fold-0")[0]
    parts = {"test": bench.manifest.of_split("test")}
    if arm == TEACHER:
        parts[OUTSIDE] = bench.manifest.of_cohort(OUTSIDE)
    for split, part in parts.items():
        images = images_of(part, job.findings)
        scores = predict_images(job, config, model, images)
        predictions = Predictions(images.image_id, scores, job.findings, split, job.fingerprint)
        predictions.write(store, f"predictions/{split}.parquet")
    store.write("done", b"")


def scores_of(bench: Bench, arm: str, seed: int, split: str) -> pd.DataFrame:
    """The stored scores of a trial: index image_id, a column a finding."""
    return pd.read_parquet(f"{bench.store(arm, seed).uri}/predictions/{split}.parquet").set_index("image_id")


def validation_of(bench: Bench, seed: int) -> Validation:
    """What the teacher's calibration is fitted on."""
    frame, table = scores_of(bench, TEACHER, seed, "val"), bench.manifest.table
    rows = pd.Index(table["image_id"]).get_indexer(frame.index)
    subjects = table["subject_id"].to_numpy()[rows]
    return Validation(frame.to_numpy(), bench.manifest.targets()[rows], subjects, np.zeros(len(rows), np.int64))


def shares_of(bench: Bench) -> np.ndarray:
    """The labelled prevalence [C] of the main cohort's training images."""
    return shares(bench.manifest.of_cohort(MAIN).of_split("train").targets())


def taught(bench: Bench, arm: str, seed: int) -> SoftTargets:
    """The pseudo-labels of an arm, of its own seed's teacher."""
    frame = scores_of(bench, TEACHER, seed, OUTSIDE)
    outside = bench.manifest.of_cohort(OUTSIDE)
    values = {"hard": "hard", "raw": "raw"}.get(arm, "soft")
    maps, shares = maps_of(validation_of(bench, seed), 0), shares_of(bench)[None]
    everything = {OUTSIDE: np.ones(len(frame), bool)}
    scores = frame.loc[outside.table["image_id"]].to_numpy()[None]
    filled = pseudo_labels(scores, outside.targets(), everything, values, maps, shares, KEEP)[0]  # type: ignore[arg-type]
    if arm == "permuted":
        random = np.random.default_rng(seed)
        for column in filled.T:
            given = np.flatnonzero(~np.isnan(column))
            column[given] = column[random.permutation(given)]
    ids = pd.Index(outside.table["image_id"].astype(str), name="image_id")
    table = pd.DataFrame(filled.astype(np.float32), ids, list(bench.manifest.findings))
    return SoftTargets(table[table.notna().any(axis=1)], f"{arm} by {TEACHER}-{seed}")


def hidden_lines(bench: Bench, seed: int) -> tuple[FindingLine, ...]:
    """The teacher's pseudo-labels against the truth of hidden outside cells."""
    outside = (bench.manifest.cohorts == OUTSIDE).to_numpy()
    truth, table = bench.truth[outside], bench.manifest.table[outside]
    raw = scores_of(bench, TEACHER, seed, OUTSIDE).loc[table["image_id"]].to_numpy()
    (maps,) = maps_of(validation_of(bench, seed), 0)
    hard = class_aware(np.where(bench.manifest.targets()[outside] < 0, raw, np.nan), shares_of(bench), KEEP)
    groups = table["subject_id"].to_numpy()
    return lines_of(bench.manifest.findings, truth, raw, maps(raw), hard, groups, 1000, seed)


def table_of(bench: Bench, seeds: int) -> Iterator[str]:
    """Test mAP of each arm that all seeds have, beside the baseline and beside the null arm."""
    test = bench.manifest.of_split("test")
    ids, groups = test.table["image_id"], test.table["subject_id"].to_numpy()
    complete = [arm for arm in ARMS if all(bench.store(arm, seed).exists("done") for seed in range(seeds))]
    systems = {
        arm: [scores_of(bench, arm, seed, "test").loc[ids].to_numpy() for seed in range(seeds)] for arm in complete
    }
    if BASELINE not in systems:
        return
    result = paired(systems, test.targets(), groups)
    yield "| arm | test mAP, mean (least to most) | above main | above null |"
    yield "|---|---|---|---|"
    for arm in complete:
        values = result.values[arm]
        against = [
            result.gain(arm, other) if other in systems and arm != other else "-" for other in (BASELINE, TEACHER)
        ]
        spread = f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"
        yield f"| {arm} | {spread} | {' | '.join(against)} |"


def bars(bench: Bench, seeds: int) -> Iterator[str]:
    """What the hidden cells say of each seed's teacher, and its Brier score on validation."""
    for seed in range(seeds):
        if not bench.store(TEACHER, seed).exists("done"):
            continue
        lines, validation = hidden_lines(bench, seed), validation_of(bench, seed)
        enough = [line for line in lines if line.positives >= LEAST]
        met = [line for line in enough if meets(line)]
        yield ""
        yield (
            f"Seed {seed}, hidden outside cells: the ratio's interval meets .8 to 1.25 for {len(met)} of {len(enough)} "
            f"findings with {LEAST} or more hidden positives."
        )
        yield ""
        yield "| finding | hidden positives | ratio [95 %] | AP | Brier, calibrated (raw) | precision, hard |"
        yield "|---|---|---|---|---|---|"
        for line in lines:
            if not line.positives or line.low is None:
                continue
            high = "inf" if line.high is None else f"{line.high:.2f}"
            precision = "-" if line.precision is None else f"{line.precision:.3f}"
            yield (
                f"| {line.finding} | {line.positives} | {line.ratio:.2f} [{line.low:.2f}, {high}] | {line.ap:.3f} | "
                f"{line.brier:.4f} ({line.brier_raw:.4f}) | {precision} |"
            )
        own = calibrated_validation(validation, maps_of(validation, 0))
        known = validation.targets >= 0
        errors = [float(np.mean((s - validation.targets)[known] ** 2)) for s in (own, validation.scores)]
        yield ""
        yield f"Validation, cross-fitted by subject: Brier {errors[0]:.4f} calibrated, {errors[1]:.4f} raw."


def main() -> None:
    """Train what is missing, in the order of the seeds, and show what there is."""
    parser = options(__doc__, {"images": 1600, "size": 96, "epochs": 12, "seeds": 3, "minutes": 600})
    parser.add_argument("--only", choices=("phantom", "nih384"), help="one dataset")
    arguments = parser.parse_args()
    started, lines = time.monotonic(), []
    for dataset in ("phantom", "nih384"):
        if arguments.only not in (None, dataset):
            continue
        if dataset == "nih384" and not REAL.is_dir():
            lines += [f"{dataset}: {REAL} is not here.", ""]
            continue
        bench = bench_of(dataset, arguments.images, arguments.size, arguments.epochs)
        pieces = [(seed, arm) for seed in range(arguments.seeds) for arm in ARMS]
        missing = [(seed, arm) for seed, arm in pieces if not bench.store(arm, seed).exists("done")]
        for number, (seed, arm) in enumerate(missing, 1):
            if time.monotonic() - started > 60 * arguments.minutes:
                break
            train_arm(bench, arm, seed)
            print(f"{dataset}: {number}/{len(missing)} {arm}, seed {seed}", flush=True)
        counts = bench.manifest.table.groupby([bench.manifest.cohorts, "split"]).size()
        shown = ", ".join(f"{count:,} {cohort} {split}" for (cohort, split), count in counts.items())
        lines += [f"### {dataset}", "", f"Images: {shown}.", ""]
        lines += [*table_of(bench, arguments.seeds), *bars(bench, arguments.seeds), ""]
    publish("pseudo", "Noisy Student: pseudo-labels of an outside cohort", "", lines, arguments.write)


if __name__ == "__main__":
    main()
