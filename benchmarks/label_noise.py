"""What label noise costs: the same trial on the phantom, trained on labels of six kinds, scored on its truth.

The truth is what is drawn. Rules label the phantom's reports, all of them and with a quarter of their phrases removed;
noise omits a share of each finding's positives and invents as many. Labels replace the cohort's in train and val, as
`sweep --labels` does; the test images keep the truth. Intervals are 95 %, bootstrapped by subject, of the difference to
the truth's mAP, averaged over the seeds.

    python benchmarks/label_noise.py --write     # three seeds, about half an hour on two cores; resumable
    python benchmarks/label_noise.py --seeds 1   # a first impression
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from ablation_page import System, lines_of
from ablations import BASELINE, ROWS, SIZE, config_of, test_images
from cache import job
from report import options, publish

if TYPE_CHECKING:
    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.labelling.rules import Rules
    from cxrlt_ray.phantom.labels import PhantomCohort
    from cxrlt_ray.training.job import Job

BUILD = Path(__file__).parent.parent / "build" / "label_noise"
TRUTH, RULES, FEWER = "truth", "rules", "rules less a quarter of their phrases"
NOISE = {f"noise, {rate:.0%} of positives": rate for rate in (0.05, 0.2, 0.4)}
KINDS = (TRUTH, RULES, FEWER, *NOISE)
REMOVED = 0.25
COLUMNS = ["| | labels | mAP | against the truth | of tail findings | |", "|---|---|---|---|---|---|"]


def drawn(images: int) -> tuple[PhantomCohort, Path]:
    """The phantom cohort and its tree, which is written where it is missing."""
    from cxrlt_ray.phantom import write_phantom
    from cxrlt_ray.phantom.labels import draw_cohort

    folder = BUILD / f"phantom-{images}"
    write_phantom(str(folder), images=images, size=128, seed=0)
    return draw_cohort(images, 0), folder


def fewer_phrases(rules: Rules, seed: int) -> Rules:
    """The rules with REMOVED of the phrases of each finding left out at random; one phrase at least stays."""
    rng = np.random.default_rng(seed)

    def kept(phrases: tuple[str, ...]) -> tuple[str, ...]:
        count = min(len(phrases) - 1, round(REMOVED * len(phrases)))
        gone = set(rng.choice(len(phrases), max(count, 0), replace=False).tolist()) if phrases else set()
        return tuple(phrase for k, phrase in enumerate(phrases) if k not in gone)

    every = tuple(rule.model_copy(update={"phrases": kept(rule.phrases)}) for rule in rules.every)
    return dataclasses.replace(rules, every=every)


def noisy(truth: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """The truth bool [S, C] with a share `rate` of each finding's positives omitted, and as many invented."""
    rng = np.random.default_rng(seed)
    labels = truth.copy()
    for column in labels.T:
        positive, negative = np.flatnonzero(column), np.flatnonzero(~column)
        count = min(round(rate * len(positive)), len(negative))
        column[rng.choice(positive, count, replace=False)] = False
        column[rng.choice(negative, count, replace=False)] = True
    return labels


def labels_of(kind: str, cohort: PhantomCohort, folder: Path) -> pd.DataFrame:
    """Labels Int8 by study id of a kind: 1, 0, -1 (uncertain) or null (not mentioned), of all findings."""
    from cxrlt_ray.data.tasks import ALL_FINDINGS

    index = pd.Index("s" + cohort.studies["study_id"].astype(str), name="study_id")
    if kind in (RULES, FEWER):
        values = [_read(text, kind) for text in _reports(cohort, folder)]
        return pd.DataFrame(values, index, list(ALL_FINDINGS)).astype("Int8")
    return pd.DataFrame(noisy(cohort.truth, NOISE.get(kind, 0.0), 1), index, list(ALL_FINDINGS)).astype("Int8")


def _reports(cohort: PhantomCohort, folder: Path) -> list[str]:
    from cxrlt_ray.phantom.tree import report_paths

    return [(folder / path).read_text() for path in report_paths(cohort)]


def _read(text: str, kind: str) -> dict[str, int]:
    from cxrlt_ray.labelling.labeller import label

    return {finding: value for finding, (value, _) in label(text, _rules(kind)).items()}


def _rules(kind: str, known: dict[str, Rules] = {}) -> Rules:  # noqa: B006
    from cxrlt_ray.labelling.rules import load_rules

    if kind not in known:
        known[kind] = load_rules() if kind == RULES else fewer_phrases(load_rules(), 0)
    return known[kind]


def cohort_with(kind: str, cohort: PhantomCohort, folder: Path) -> Manifest:
    """The phantom as a sweep with these labels reads it; test images keep theirs, which are the truth."""
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.given_labels import GivenLabels

    labels = GivenLabels(labels_of(kind, cohort, folder), kind)
    return read_cohort(str(folder), task="task1", labels=labels).manifest


def job_of(kind: str, images: int) -> tuple[Job, Manifest]:
    """A run of its own on these labels; the shards are of all kinds alike."""
    from cxrlt_ray.data.prepare import prepare

    cohort, folder = drawn(images)
    manifest = cohort_with(kind, cohort, folder)
    shards = prepare(manifest, str(BUILD), [SIZE])
    return job(BUILD / f"run-{images}-{KINDS.index(kind)}", manifest, shards, manifest.findings, threads=1), manifest


def train_kind(kind: str, seed: int, images: int) -> str:
    """Train the trial on labels of a kind and score the test images, in a process of its own; a line on how it went."""
    import torch

    from cxrlt_ray import models
    from cxrlt_ray.runs.predictions import Predictions
    from cxrlt_ray.training.trial import train
    from cxrlt_ray.training.validation import predict_images

    torch.set_num_threads(1)
    shared, manifest = job_of(kind, images)
    config, store = config_of(ROWS[0], seed, shared), shared.run / "trials" / f"T{seed}"
    train(shared, f"T{seed}", config, {}, lambda _: None)
    model = models.load(Path(store.uri) / "fold-0")[0]
    test = test_images(manifest, shared)
    scores = predict_images(shared, config, model, test)
    Predictions(test.image_id, scores, shared.findings, "test", shared.fingerprint).write(
        store, "predictions/test.parquet"
    )
    store.write("done", b"")
    return f"{kind}, seed {seed}"


def train_all(seeds: int, images: int, processes: int) -> None:
    """Train every kind with every seed, as far as not done."""
    missing = [
        (kind, seed, images)
        for seed in range(seeds)
        for kind in KINDS
        if not (BUILD / f"run-{images}-{KINDS.index(kind)}" / "trials" / f"T{seed}" / "done").exists()
    ]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        trained = as_completed([pool.submit(train_kind, *arguments) for arguments in missing])
        for count, future in enumerate(trained, 1):
            print(f"{count}/{len(missing)} {future.result()}", flush=True)


def quality_lines(images: int) -> list[str]:
    """A table of the labels themselves against the truth of all studies: pooled precision and recall."""
    from cxrlt_ray.data.tasks import ALL_FINDINGS
    from cxrlt_ray.evaluation.confusion import counts, rates
    from cxrlt_ray.labelling.matching import as_codes

    cohort, folder = drawn(images)
    lines = ["| labels | precision | recall | kappa |", "|---|---|---|---|"]
    for kind in KINDS:
        said = as_codes(labels_of(kind, cohort, folder)[list(ALL_FINDINGS)], "zero", "zero")
        pooled = rates(counts(cohort.truth.astype(np.int8), said).sum(axis=(1, 2)))
        lines.append(
            f"| {kind} | " + " | ".join(f"{pooled[name]:.3f}" for name in ("precision", "recall", "kappa")) + " |"
        )
    return lines


def cost_lines(seeds: int, images: int) -> list[str]:
    """The table of test mAP by kind of labels."""
    shared, manifest = job_of(TRUTH, images)
    test = test_images(manifest, shared)
    systems = []
    for k, kind in enumerate(KINDS):
        folders = [BUILD / f"run-{images}-{k}" / "trials" / f"T{seed}" for seed in range(seeds)]
        frames = [pd.read_parquet(folder / "predictions" / "test.parquet") for folder in folders]
        systems.append(
            System("", kind, [frame.set_index("image_id").loc[test.image_id].to_numpy() for frame in frames])
        )
    subject = manifest.table.set_index("image_id")["subject_id"].loc[test.image_id].to_numpy()
    from cxrlt_ray.data.tasks import rarity

    kinds = np.array(rarity(manifest.of_split("train").targets(shared.findings)))
    return [*COLUMNS, *lines_of(systems, test, subject, kinds == "tail").values()]


def main() -> None:
    parser = options(__doc__, {"images": 2000, "seeds": 3, "processes": 2})
    args = parser.parse_args()
    from cxrlt_ray.cluster.start import start_ray

    ray = start_ray()
    job_of(TRUTH, args.images)
    ray.shutdown()  # the shards exist: what follows needs none
    train_all(args.seeds, args.images, args.processes)
    conditions = (
        f": {args.images:,} images of the phantom, task 1, {BASELINE.removeprefix('baseline: ')}, {args.seeds} seeds. "
        "Labels replace the cohort's in train and val, test images keep the truth. -1 is not labelled in training."
    )
    lines = [*quality_lines(args.images), "", *cost_lines(args.seeds, args.images)]
    publish("label_noise", "What label noise costs", conditions, lines, args.write)


if __name__ == "__main__":
    main()
