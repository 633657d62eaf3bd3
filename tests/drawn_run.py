"""A run of three trials whose validation predictions are drawn, as a sweep would leave it: no model is trained."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.runs.records import RunRecord
from cxrlt_ray.runs.store import Run
from cxrlt_ray.storage import Store

FINDINGS = ("Mass", "Nodule", "Edema")
CONFIG = {"backbone": "test_convnext", "resolution": 32, "epochs": 1, "pretrained": False, "tta": "flip"}
IMAGES = 600


def make_run(folder) -> tuple[Run, Manifest]:
    """A run of three trials: augmentation helps T0000, harms T0001, and T0002 was never tried."""
    rng = np.random.default_rng(0)
    targets = (rng.random((IMAGES, 3)) < 0.2).astype(np.int8)
    table = pd.DataFrame([dict.fromkeys(META)] * IMAGES)
    table["image_id"] = [f"i{n:03d}" for n in range(IMAGES)]
    table["study_id"] = [f"s{n // 2:03d}" for n in range(IMAGES)]
    table["subject_id"] = [str(n // 4) for n in range(IMAGES)]
    table["view"], table["split"], table["path"] = "PA", "val", "x.jpg"
    table[list(FINDINGS)] = targets
    manifest = Manifest(table.astype(dict.fromkeys(FINDINGS, "Int8")), FINDINGS, "table", str(folder))
    task = Task("mine", FINDINGS, "test")
    run = Run(Store(str(folder / "r")), RunRecord(name="r", task=task, task_argument="auto"))
    for number, noise in enumerate([(1.5, 0.7), (1.0, 2.0), (1.0, None)]):
        name = f"T000{number}"
        store = run.store / "trials" / name
        trial = {"name": name, "state": "finished", "config": CONFIG, "findings": list(FINDINGS), "fingerprint": "f"}
        trial["val_map"] = 0.5
        for split, sd in zip(("val", "val-tta"), noise, strict=True):
            if sd is not None:
                logits = 2 * targets - 2 + rng.normal(0, sd, targets.shape)
                write_predictions(store, table["image_id"], 1 / (1 + np.exp(-logits)), split)
        if noise[1] is not None:
            trial["tta"] = {"looks": 2, "val_map": 0.5, "price": 2.1}
        store.write("fold-0/model.json", b"{}")
        store.write("fold-0/model.safetensors", name.encode())
        store.write_json("trial.json", trial)
    return run, manifest


def make_tested_run(folder) -> Run:
    """The run on disk, under folder/r; its validation images stand for test images too."""
    run, manifest = make_run(folder)
    table = manifest.table
    test = table.assign(image_id="t" + table["image_id"], study_id="t" + table["study_id"], split="test")
    test = test.assign(subject_id="t" + test["subject_id"])
    with run.store.place("manifest.parquet") as path:
        type(manifest)(pd.concat([table, test]), FINDINGS, "table", manifest.root).write(path)
    run.write(run.record.model_copy(update={"data": "/data", "created": "2026"}))
    for trial in run.trials():
        for split, name in (("val", "test"), ("val-tta", "test-tta")):
            if trial.has_predictions(split):
                frame = trial.predictions(split)
                write_predictions(trial.store, "t" + frame.index, frame.to_numpy(), name)
    return run


def write_predictions(store, ids, scores, split, fingerprint="f") -> None:
    predictions = Predictions(np.array(ids), np.asarray(scores), FINDINGS, split, fingerprint)
    predictions.write(store, f"predictions/{split}.parquet")


def predictable(run: Run, data, monkeypatch) -> tuple[pd.DataFrame, np.ndarray]:
    """Four new images in the folder `data`, which `predict` scores without pixels: their rows, scores [4, 3, C]."""
    from cxrlt_ray.ensembling import score

    data.mkdir()
    table = run.manifest().of_split("val").table.iloc[:4][["image_id", "subject_id", "study_id", "view", "path"]]
    table.assign(**dict.fromkeys(FINDINGS, 0), split="test").to_csv(data / "labels.csv", index=False)
    scores = np.random.default_rng(0).random((4, 3, 3)).astype(np.float32)

    def scored(work, shards, members, images):
        return pd.DataFrame({"scores": list(scores)}, index=pd.Index(images["image_id"]))

    monkeypatch.setattr(score, "score", scored)
    monkeypatch.setattr("cxrlt_ray.cluster.start.start_ray", lambda address: None)
    monkeypatch.setattr("cxrlt_ray.data.prepare.prepare", lambda *arguments, **options: ())
    return table, scores
