"""The arms of benchmarks/zeroshot.py that train: each a search space of one point, and the sweep that it is given to.

To add one: a line of ARMS.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TEXT, WIDTH = "minilm", 384
STATED = ("zero_shot_stated", "zero_shot_stated_grounding")  # objectives that read sentences
TOKENS = 128  # of a report; most are shorter
TRAINED = 0.7  # about the share of a cohort's images that train
BATCH, PAIRS = 16, 32  # images a step of training, as in `laptop`; of pretraining, which has negatives by them


@dataclass(frozen=True)
class Arm:
    """A trial. track: of the sweep; "" where no text is read. stage: the pretraining on reports. team: that it is like.

    reports: own, or shuffled between studies. labels: all, or seen: the findings of task 3 have none. random: label
    embeddings are random numbers. objective: of those that answer by text. draw: what of a report pretraining reads.
    """

    name: str
    track: str = ""
    head: str = "linear"
    prompts: str = "name"
    stage: str = ""
    team: str = ""
    reports: str = "own"
    labels: str = "seen"
    random: bool = False
    objective: str = "zero_shot"
    draw: str = "report"

    @property
    def compares(self) -> bool:
        """Whether it asks by the similarity that pretraining learnt."""
        return self.head == "similarity"

    @property
    def reads(self) -> bool:
        """Whether it learns from reports."""
        return bool(self.stage) or self.objective in STATED or self.track == "mined"

    @property
    def asks(self) -> bool:
        """Whether it answers by text."""
        return bool(self.track)


def _heads(track: str) -> list[Arm]:
    return [
        Arm(f"pair, {track}", track, "pair", "question", "clip", "G"),
        Arm(f"query_decoder, {track}", track, "query_decoder", "description", "clip", "B, H"),
        Arm(f"film, {track}", track, "film", "phrases", "clip", "I"),
        Arm(f"mama, {track}", track, "similarity", "keywords", "mama", "C"),
        Arm(f"siglip, {track}", track, "similarity", "phrases", "siglip", draw="sentence"),
    ]


SEEN, SUPERVISED, MINED = Arm("seen"), Arm("supervised", labels="all"), "mined"
CONTROLLED, FINDINGS, SHUFFLED, RANDOM = "bilinear, reports", "bilinear, findings", "shuffled", "random texts"
# what sentences of reports add, without pretraining, and what texts of findings do
BESIDE = {"film, sentences": "film, findings", CONTROLLED: FINDINGS, FINDINGS: RANDOM}
ARMS = [
    SEEN,
    SUPERVISED,
    *_heads("reports"),
    *_heads("scrubbed"),
    Arm(MINED, "mined", "bilinear", "phrases"),
    Arm(SHUFFLED, "reports", "bilinear", "phrases", reports="shuffled", objective="zero_shot_stated"),
    Arm(RANDOM, "scrubbed", "bilinear", "phrases", random=True),
    Arm("film, sentences", "reports", "film", "phrases", team="I", objective="zero_shot_stated_grounding"),
    Arm("film, findings", "scrubbed", "film", "phrases", team="I", objective="zero_shot_grounding"),
    Arm(CONTROLLED, "reports", "bilinear", "phrases", objective="zero_shot_stated"),
    Arm("bilinear, scrubbed", "scrubbed", "bilinear", "phrases", objective="zero_shot_stated"),
    Arm(FINDINGS, "scrubbed", "bilinear", "phrases"),
]


@dataclass(frozen=True)
class Size:
    """What all arms share. epochs: of pretraining, and of training; those without pretraining have both."""

    images: int
    size: int
    epochs: tuple[int, int]
    folds: int
    backbone: str
    resolution: int
    apart: int
    enriched: float = 0.0
    cpus: float | None = None  # of a trial; it changes no result

    @property
    def name(self) -> str:
        """Of the folder: arms of another size are not compared."""
        epochs = "-".join(map(str, self.epochs))
        drawn = f"{self.images}x{self.size}a{self.apart}" + (f"r{self.enriched:g}" if self.enriched else "")
        return f"{drawn}-{self.backbone}-{self.resolution}-{epochs}e{self.folds}f"


@dataclass(frozen=True)
class Trained:
    """What an arm left. scores: of the test images; validation: of the validation images, of arm `seen`."""

    fold_log_lift: float | None
    seconds: float
    scores: pd.DataFrame
    validation: pd.DataFrame


def trained(folder: Path, arm: Arm, seed: int) -> Trained | None:
    """What an arm left earlier, if it did."""
    place = folder / f"{slug(arm)}-{seed}.json"
    if not place.exists():
        return None
    record = json.loads(place.read_text())
    tables = (pd.read_parquet(place.with_suffix(f".{split}.parquet")) for split in ("test", "val"))
    return Trained(record["fold_log_lift"], record["seconds"], *tables)


def train(folder: Path, arm: Arm, size: Size, data: Path, seed: int) -> Trained:
    """Sweep and ensemble of one trial by the package's commands; goes on with a run that was cut."""
    from cxrlt_ray import ensemble, sweep

    began, name, storage = time.monotonic(), f"{slug(arm)}-{seed}", folder / "runs"
    if (storage / name / "run.json").exists():
        task = json.loads((storage / name / "run.json").read_text())["task_argument"]
        request: dict[str, Any] = {"task": task, "resume": True}
    else:
        request = _request(folder, arm, size, data, seed)
    with contextlib.redirect_stdout(io.StringIO()):
        how = {"storage": str(storage), "name": name, "cpus_per_trial": size.cpus}
        swept = sweep.run(sweep.SweepRequest(**request, **how))
        stacked = ensemble.run(ensemble.EnsembleRequest(run=name, storage=str(storage), split="test", rounds=10))
    assert swept is not None
    (trial,) = swept.trials()
    with stacked.store.fetched("predictions.parquet") as path:
        scores = pd.read_parquet(path).set_index("image_id")
    merit = trial.score if arm.asks and arm.track != MINED else None
    place = folder / f"{name}.json"
    scores.to_parquet(place.with_suffix(".test.parquet"))
    trial.predictions().to_parquet(place.with_suffix(".val.parquet"))
    seconds = time.monotonic() - began
    place.write_text(json.dumps({"fold_log_lift": merit, "seconds": seconds}))
    return Trained(merit, seconds, scores, trial.predictions())


def slug(arm: Arm) -> str:
    """The arm's name in a file's."""
    return arm.name.replace(", ", "-").replace(" ", "-")


def _request(folder: Path, arm: Arm, size: Size, data: Path, seed: int) -> dict[str, Any]:
    task = "task3" if arm.asks else "task1" if arm.labels == "seen" else "auto"
    request: dict[str, Any] = {
        "task": task,
        "data": str(data),
        "space": str(space(folder, arm, size, seed)),
        "trials": 1,
    }
    request["seed"] = seed
    if arm.asks:
        reports = shuffled_reports(folder, data, seed) if arm.reports == "shuffled" else data
        request |= {"track": arm.track, "finding_folds": size.folds}
        request |= {"reports": str(reports)} if arm.reads else {}
    if arm.labels == "all":
        request |= {"labels": str(labels(folder, data, seed)), "labels_mode": "join"}
    if arm.track == "scrubbed" and arm.reads:
        request["scrub"] = str(wordings(folder))
    return request


def space(folder: Path, arm: Arm, size: Size, seed: int) -> Path:
    """The search space of an arm, as a file: one point."""
    import yaml

    before, after = size.epochs
    parameters: dict[str, Any] = {
        "backbone": size.backbone,
        "pretrained": not size.backbone.startswith("test_"),
        "resolution": size.resolution,
        "batch_size": BATCH,
        "lr": 1.4e-3,
        "weight_decay": 0.01,
        "augment": 0.4,
        "crop": 0.875,
        "warmup_fraction": 0.3,
        "ema_decay": 0.99,
        "flip": 0.0,  # reports say right and left
        "loss": "bce",
    }
    if size.backbone.startswith("tf_efficientnet_lite0"):
        parameters["frozen_layers"] = 3  # as in `laptop`
    content: dict[str, Any] = {"trials": 1, "prune": False, "parameters": parameters}
    own: dict[str, Any] = {"head": arm.head, "objective": arm.objective if arm.asks else "multilabel"}
    if arm.head == "query_decoder":
        own |= {"query_layers": 2, "query_width": 256}
    if arm.asks:
        own |= {"queries": str(random_texts(folder, seed))} if arm.random else {"text": TEXT, "prompts": arm.prompts}
    if arm.stage:
        kept = own if arm.compares else {"head": "linear", "text": TEXT}
        first = {**kept, "objective": arm.stage, "pool": "avg", "text_draw": arm.draw}
        first |= {"max_tokens": TOKENS, "batch_size": PAIRS}
        if arm.stage == "mama":  # C: 8,000 of 40,000 steps of image and report alone; the default would be all of ours
            first["mama_start"] = int(size.images * TRAINED / PAIRS) * before // 5
        reset = {"pool": "avg" if arm.compares else "own"} | ({"text": None} if arm.random else {})
        second = {"batch_size": BATCH, "fresh_head": not arm.compares, **reset, **own}
        content["stages"] = [{"epochs": before, **first}, {"epochs": after, **second}]
    else:
        parameters |= own
        content["epochs"] = before + after
    place = folder / "spaces" / f"{slug(arm)}-{seed}.yaml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(yaml.safe_dump(content, sort_keys=False))
    return place


def wordings(folder: Path) -> Path:
    """All of the phantom's wordings of every finding, as a list to scrub by."""
    import re

    import yaml

    from cxrlt_ray.phantom.wordings import INDIRECT, PHRASES, RESERVED

    lists = {
        finding: [
            re.sub("^(an?|the) ", "", phrase).format(side="(right|left)")
            for phrase in (*PHRASES[finding], *INDIRECT.get(finding, ()), *RESERVED.get(finding, ()))
        ]
        for finding in PHRASES
    }
    place = folder / "wordings.yaml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(yaml.safe_dump(lists))
    return place


def labels(folder: Path, data: Path, seed: int) -> Path:
    """The training labels of task 3's findings by study, which the cohort's own tables do not have."""
    from cxrlt_ray.data.tasks import TASK3

    columns = ["study_id", "split", *TASK3]
    table = pd.read_csv(data / "cxr-lt-2024" / "labels.csv", usecols=columns, dtype={"study_id": str})
    place = folder / f"labels-{seed}.csv"
    table[table["split"] != "test"].groupby("study_id")[list(TASK3)].max().to_csv(place)
    return place


def shuffled_reports(folder: Path, data: Path, seed: int) -> Path:
    """A table of the cohort's reports, each given to another study."""
    from cxrlt_ray.labelling.reports import read_reports

    place = folder / f"shuffled-{seed}.parquet"
    reports = list(read_reports(str(data)))
    order = np.random.default_rng(seed).permutation(len(reports))
    texts = [""] * len(reports)
    for k, row in enumerate(order):  # one cycle: none keeps its own
        texts[row] = reports[order[k - 1]].text
    pd.DataFrame({"study_id": [report.study_id for report in reports], "text": texts}).to_parquet(place)
    return place


def random_texts(folder: Path, seed: int) -> Path:
    """Label embeddings of norm 1 that say nothing of their findings."""
    from cxrlt_ray.data.tasks import ALL_FINDINGS

    rows = np.random.default_rng([seed, 7]).normal(size=(len(ALL_FINDINGS), WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    table = pd.DataFrame(rows, columns=[f"e{k}" for k in range(WIDTH)]).assign(finding=list(ALL_FINDINGS))
    place = folder / f"random-{seed}.parquet"
    table.to_parquet(place)
    return place
