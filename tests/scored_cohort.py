"""A cohort in a plain table, a submission to it, scores, and what a terminal shows of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.ensembling import submission
from cxrlt_ray.evaluation.scores import Scores, evaluate

FINDINGS = ("Mass", "Nodule", "Hernia")
TASK = Task("auto", FINDINGS)


def shown(parts: list) -> str:
    """What a terminal of 80 columns shows."""
    from rich.console import Console

    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str))
    return capture.get()


def some_scores(rounds: int = 50) -> Scores:
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 3)) < [0.5, 0.2, 0]).astype(np.int8)
    scores = np.clip(0.4 * targets + 0.6 * rng.random((60, 3)), 0, 1)
    return evaluate(targets, scores, FINDINGS, ["head", "medium", ""], np.arange(60) // 2, rounds)


def cohort(folder: Path, images: int = 120) -> Manifest:
    """A plain table of that many images; the last test image carries no label, Hernia is in train alone."""
    rng = np.random.default_rng(0)
    labels = (rng.random((images, 3)) < [0.5, 0.2, 0.1]).astype(object)
    table = pd.DataFrame(labels.astype(int), columns=FINDINGS).astype("Int64")
    table.insert(0, "image_id", [f"i{k:03d}" for k in range(images)])
    table.insert(1, "subject_id", [f"p{k // 2}" for k in range(images)])
    table["path"] = table["image_id"] + ".jpg"
    table["split"] = np.repeat(["train", "val", "test"], images // 3)
    table.loc[table["split"] == "test", "Hernia"] = 0
    table.loc[images - 1, list(FINDINGS)] = pd.NA
    folder.mkdir()
    table.to_csv(folder / "labels.csv", index=False)
    return Manifest(table.reindex(columns=[*META, *FINDINGS]), FINDINGS, "table", str(folder))


def submit(folder: Path, ids: list[str], name: str = "submission.csv") -> str:
    scores = np.random.default_rng(1).random((len(ids), 3))
    frame = submission.build(ids, scores, FINDINGS)
    frame.to_csv(folder / name, index=False)
    return str(folder / name)
