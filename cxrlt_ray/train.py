"""One trial: its folds, its stages, and what it leaves; the code that runs in Ray Train, on one device or on several.

After each epoch the validation images are scored; predictions and checkpoint of the best epoch of the stage are kept,
so that a trial that is stopped early leaves what it had. A stage begins with the weights that the one before ended
with (carried to its resolution, head and fusion), and with nothing of its scores: they are of another model.

With K folds a trial trains K models on the same folds as every other trial: its validation predictions are
out-of-fold over train. Fold 0 reports each epoch to the scheduler; the others follow. With `refit` one more model is
trained, on train and validation images together, and scores new images.

A stage of other cohorts' images is alike for many trials: its weights are kept in RUN/stages and taken up by the next
trial with the same stages up to there.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlt_ray import device as device_
from cxrlt_ray import metrics
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.fit import Clock, Job, Part, fit, place
from cxrlt_ray.manifest import FRONTAL, MAIN, Manifest, codes
from cxrlt_ray.prepare import Shards, nearest
from cxrlt_ray.storage import Store
from cxrlt_ray.stream import Ingest, batches
from cxrlt_ray.trialconfig import ALL, OUTSIDE, TrialConfig
from cxrlt_ray.trials import FINISHED, REFIT, RUNNING, looked_at, write_predictions

if TYPE_CHECKING:
    import torch

Report = Callable[[dict[str, Any]], None]


def train(job: Job, name: str, config: TrialConfig, params: dict[str, Any], report: Report) -> None:
    """Train trial `name`, write what it leaves to RUN/trials/NAME and report after each epoch.

    Raises CxrltError when the loss stays non-finite, and what torch raises (out of memory) as it is.
    """
    import torch

    from cxrlt_ray.models import weights

    if job.threads:
        torch.set_num_threads(job.threads)
    store = job.run / "trials" / name
    about: dict[str, Any] = {
        "name": name,
        "state": RUNNING,
        "params": params,
        "config": config.model_dump(),
        "findings": list(job.findings),
        "fingerprint": job.fingerprint,
        "environment": _environment(job),
        "weights": _sources(weights.source(config.staged()[0].spec())),
        "began": time.time(),
        "epochs": [],
        "val_map": None,
    }
    keep = store if place(job)[0] == 0 else None
    if keep:
        keep.write_json("trial.json", about)
    manifest = _manifest(job.run)
    found: list[tuple[Part, np.ndarray]] = []
    for fold in range(max(job.folds, 1)):
        validation = parts(manifest, job, fold)[1]
        trial = _Fold(job, config, fold, manifest, validation, keep, about, report if fold == 0 else lambda _: None)
        found.append((validation, trial.run()))
    about["val_map"] = _keep_predictions(job, keep, found, about)
    if config.tta != "none" and keep:
        _keep_looks(job, config, keep, [validation for validation, _ in found], about)
    if config.refit:
        _refit(job, config, manifest, keep, about)
    about["state"] = FINISHED
    about["ended"] = time.time()
    _note(keep, about)
    if job.folds > 1 or config.refit or config.tta != "none":
        speed = about["epochs"][-1]["images_per_second"]
        report({"val_map": about["val_map"], "epoch": config.total_epochs + 1, "images_per_second": speed})


def _sources(source: str) -> str:
    """Where weights come from; of those that an earlier trial left (init_from) also where that had its own from."""
    folder = source.removesuffix("/model.safetensors").rpartition("/")[0]
    store = Store(folder or ".")
    if not source.endswith("/model.safetensors") or not store.exists("trial.json"):
        return source
    return f"{source}, which began from {store.read_json('trial.json').get('weights')}"


@lru_cache(maxsize=1)
def _manifest(run: Store) -> Manifest:
    """The run's manifest, read once by a process that runs many trials; it never changes."""
    with run.fetched("manifest.parquet") as path:
        return Manifest.read(path)


def parts(manifest: Manifest, job: Job, fold: int, cohorts: str = MAIN, everything: bool = False) -> tuple[Part, Part]:
    """Training and validation images of `fold`. The views option limits training only.

    cohorts: whose images train (TrialConfig.cohorts); validation is the main cohort's. everything: validation images
    train too. Raises UsageError for a cohort that is not there.
    """
    from cxrlt_ray.splits import assign_folds

    table, everyone = manifest.table, part_of(manifest, job.findings)
    main = manifest.cohorts == MAIN
    training = (table["split"] == "train").to_numpy()
    validation = (table["split"] == "val").to_numpy() & main
    if job.folds > 1:
        rows = np.flatnonzero(training & main)
        of = assign_folds(everyone.targets[rows], table["subject_id"].to_numpy()[rows], job.folds, job.seed)
        validation = np.zeros(len(table), bool)
        validation[rows[of == fold]] = True
    training = (training | validation) if everything else training & ~validation
    training = training & _of_cohorts(manifest.cohorts, cohorts)
    if job.views == "frontal":
        training = training & table["view"].isin(FRONTAL).to_numpy()
    return everyone.at(np.flatnonzero(training)), everyone.at(np.flatnonzero(validation))


def part_of(manifest: Manifest, findings: tuple[str, ...]) -> Part:
    """All images of a manifest."""
    return Part(manifest.table["image_id"].to_numpy(), manifest.targets(findings), *codes(manifest.table))


def _of_cohorts(whose: Any, cohorts: str) -> np.ndarray:
    """Which rows [N] belong to the cohorts that are named; whose: each row's."""
    main = (whose == MAIN).to_numpy()
    named = {MAIN: main, OUTSIDE: ~main, ALL: np.ones(len(main), bool)}
    chosen = named[cohorts] if cohorts in named else whose.isin(cohorts.split("+")).to_numpy()
    if not chosen.any():
        raise UsageError(f"cohorts: {cohorts}: the run has no images of it; give them by --cohort NAME=DIRECTORY.")
    return chosen


class _Fold:
    """One fold of a trial, stage after stage."""

    def __init__(
        self,
        job: Job,
        config: TrialConfig,
        fold: int,
        manifest: Manifest,
        validation: Part,
        store: Store | None,
        about: dict[str, Any],
        report: Report,
    ) -> None:
        self.job, self.config, self.fold, self.manifest = job, config, fold, manifest
        self.validation, self.store, self.about, self.report = validation, store, about, report
        self.clock, self.done = Clock(), 0
        self.best, self.scores = -math.inf, np.full(validation.targets.shape, np.nan, np.float32)

    def run(self) -> np.ndarray:
        """Train all stages; the last one's best epoch's probabilities [N, C] of the validation images."""
        from cxrlt_ray import models

        model: Any = None
        stages = self.config.staged()
        for number, stage in enumerate(stages):
            kept = self.job.run / "stages"
            key = self._key(stages[: number + 1]) if number + 1 < len(stages) and stage.cohorts != MAIN else ""
            if key and _agreed(kept.exists(f"{key}/model.safetensors"), self.job):
                with kept.fetched(key) as folder:
                    model = models.load(folder)[0]
                self.done += stage.epochs
                continue
            training = parts(self.manifest, self.job, self.fold, stage.cohorts)[0]
            model = begin(self.job, stage, model, stages[number - 1] if number else None)
            model = self._stage(number, stage, model, training)
            if key and self.store:
                with kept.place(key) as folder:
                    folder.mkdir()
                    models.save(model, stage.spec(), self.job.findings, folder)
        return self.scores

    def _stage(self, number: int, stage: TrialConfig, model: Any, training: Part) -> Any:
        """Train one stage; the model it ends with."""
        from cxrlt_ray import models

        job, about, clock = self.job, self.about, self.clock
        shards, amp = nearest(job.shards, stage.resolution), device_.autocast(stage.precision, place(job)[2])
        self.best, judged = -math.inf, model
        for epoch in fit(job, stage, model, training, self.fold, clock):
            judged = epoch.model
            scores = predict_part(
                judged, shards, self.validation.image_id, stage.resolution, stage, amp, job.ingest, self.validation
            )
            value = _map(self.validation.targets, scores)
            clock.lap("validation")
            speed = round(epoch.images_per_second, 1)
            about["epochs"].append(
                {
                    "fold": self.fold,
                    "stage": number,
                    "epoch": self.done + epoch.number,
                    "val_map": value,
                    "loss": epoch.loss,
                    "images_per_second": speed,
                }
            )
            if value > self.best or epoch.number == 0:
                self.best, self.scores = value, scores
                about["stage"] = number
                if self.store:
                    with self.store.place(f"fold-{self.fold}") as folder:
                        folder.mkdir()
                        models.save(judged, stage.spec(), job.findings, folder)
            if self.store and job.folds <= 1:
                about["val_map"], about["best_epoch"] = self.best, _best_epoch(about["epochs"], number)
                if self.scores is scores:
                    _keep_predictions(job, self.store, [(self.validation, scores)], about)
            about["images_per_second"] = speed
            clock.lap("writing")
            about["seconds"], about["ended"] = clock.seconds(), time.time()
            _note(self.store, about)
            told = {"val_map": self.best, "epoch": self.done + epoch.number + 1}
            self.report({**told, "images_per_second": epoch.images_per_second})
            clock.lap("reporting")
        self.done += stage.epochs
        return judged

    def _key(self, stages: list[TrialConfig]) -> str:
        """What the weights that these stages lead to are kept under, for every trial that has them."""
        told = [stage.model_dump(exclude={"stages", "system", "tta", "refit"}) for stage in stages]
        return hashlib.sha256(json.dumps([told, self.fold], sort_keys=True).encode()).hexdigest()[:12]


def begin(job: Job, stage: TrialConfig, before: Any, was: TrialConfig | None) -> Any:
    """The model with which `stage` begins, on its device: a new one, or `before` of stage `was` carried over."""
    import torch

    from cxrlt_ray import models

    torch.manual_seed(stage.seed)
    if before is None or was is None:
        model = models.build(stage.spec(), job.findings)
    else:
        model = models.carry(before.cpu(), was.spec(), stage.spec(), job.findings, fresh_head=stage.fresh_head)
    # channels last: up to 1.6 times as fast here on convolutions, and what tensor cores want
    return model.to(place(job)[2]).to(memory_format=torch.channels_last)


def _best_epoch(epochs: list[dict[str, Any]], stage: int) -> int:
    """The number, over all stages, of the epoch that was kept."""
    return max((e for e in epochs if e["stage"] == stage and e["fold"] == 0), key=lambda e: e["val_map"])["epoch"]


def _agreed(there: bool, job: Job) -> bool:
    """Rank 0's answer, for all ranks: a file may appear between their looks."""
    if place(job)[1] == 1:
        return there
    import torch

    flag = torch.tensor(float(there), device=place(job)[2])
    torch.distributed.broadcast(flag, 0)
    return bool(flag > 0)


def _refit(job: Job, config: TrialConfig, manifest: Manifest, store: Store | None, about: dict[str, Any]) -> None:
    """Train on train and validation images, the last stage for as many epochs as were best, and keep that model."""
    from cxrlt_ray import models

    model: Any = None
    stages = config.staged()
    last = len(stages) - 1
    before = sum(stage.epochs for stage in stages[:-1])
    best = [
        max((e for e in about["epochs"] if e["fold"] == fold and e["stage"] == last), key=lambda e: e["val_map"])
        for fold in range(max(job.folds, 1))
    ]
    epochs = round(float(np.mean([e["epoch"] - before + 1 for e in best])))
    stages[-1] = stages[-1].model_copy(update={"epochs": epochs})
    clock = Clock()
    for number, stage in enumerate(stages):
        training = parts(manifest, job, 0, stage.cohorts, everything=True)[0]
        model = begin(job, stage, model, stages[number - 1] if number else None)
        for epoch in fit(job, stage, model, training, max(job.folds, 1), clock):
            judged = epoch.model
        model = judged
    if store:
        with store.place(REFIT) as folder:
            folder.mkdir()
            models.save(model, stages[-1].spec(), job.findings, folder)
    about["refit"] = {"epochs": epochs, "seconds": clock.seconds()}


def _keep_looks(job: Job, config: TrialConfig, store: Store, folds: list[Part], about: dict[str, Any]) -> None:
    """Score the validation images under test-time augmentation too: what it gains, at what price."""
    from cxrlt_ray import models
    from cxrlt_ray.score import looks_of, predict_looks

    stage = config.staged()[-1]
    looks = looks_of(stage.resolution, stage.crop, config.tta)
    shards = nearest(job.shards, stage.resolution)
    found: list[tuple[Part, np.ndarray]] = []
    seconds = {1: 0.0, len(looks): 0.0}
    for fold, part in enumerate(folds):
        with store.fetched(f"fold-{fold}") as folder:
            model = models.load(folder)[0].to(place(job)[2]).eval()
        rows = np.flatnonzero(np.isin(part.image_id, shards.index().index))
        for count in seconds:
            started = time.monotonic()
            scores = predict_looks(
                model, shards, part.image_id[rows], looks[:count], part.study[rows], part.view[rows], job.ingest.threads
            )
            seconds[count] += time.monotonic() - started
        whole = np.full(part.targets.shape, np.nan, np.float32)
        whole[rows] = scores
        found.append((part, whole))
    value = _keep_predictions(job, store, found, about, looked_at("val", True))
    about["tta"] = {"looks": len(looks), "val_map": value, "price": round(seconds[len(looks)] / seconds[1], 2)}


def _note(store: Store | None, about: dict[str, Any]) -> None:
    """Write trial.json, unless the trial was ended from outside: a worker group may be an epoch behind that."""
    if store and store.read_json("trial.json")["state"] == RUNNING:
        store.write_json("trial.json", about)


def predict_part(
    model: torch.nn.Module,
    shards: Shards,
    image_ids: np.ndarray,
    resolution: int,
    config: TrialConfig,
    amp: Callable[[], Any],
    ingest: Ingest | None = None,
    part: Part | None = None,
) -> np.ndarray:
    """Probabilities float32 [N, C] of `image_ids`, in their order; nan where an image is in quarantine.

    part: the images' studies and views, for models that fuse them.
    """
    import torch

    device = next(model.parameters()).device
    model.eval()
    scores: np.ndarray | None = None
    fused = config.fusion != "none" and part is not None
    stream = batches(
        shards,
        image_ids,
        resolution,
        config.batch_size * (1 if fused else 2),
        crop=config.crop,
        study=part.study if fused and part is not None else None,
        ingest=ingest,
    )
    with torch.inference_mode():
        for batch, pixels in device_.ahead(stream, device):
            inputs = [pixels]
            if fused and part is not None:
                inputs += [torch.from_numpy(codes[batch.rows]).to(device) for codes in (part.study, part.view)]
            with amp():
                logits = model(*inputs)
            found = logits.float().sigmoid().cpu().numpy()
            if not np.isfinite(found).all():
                raise CxrltError("diverged: the model's predictions are not finite; lower lr")
            if scores is None:
                scores = np.full((len(image_ids), found.shape[1]), np.nan, np.float32)
            scores[batch.rows] = found
    if scores is None:
        raise CxrltError("none of the images to score could be decoded: see quarantine.parquet beside the shards.")
    return scores


def _keep_predictions(
    job: Job, store: Store | None, found: list[tuple[Part, np.ndarray]], about: dict[str, Any], split: str = "val"
) -> float:
    """Store the validation predictions of all folds together; returns their macro mAP."""
    ids = np.concatenate([part.image_id for part, _ in found])
    targets = np.concatenate([part.targets for part, _ in found])
    scores = np.concatenate([scores for _, scores in found])
    seen = _seen(scores)
    if store:
        write_predictions(
            store, f"predictions/{split}.parquet", ids[seen], scores[seen], job.findings, split, job.fingerprint
        )
    return _map(targets, scores)


def _seen(scores: np.ndarray) -> np.ndarray:
    """The rows [N] of images that were scored: those in quarantine have nan."""
    return ~np.isnan(scores).any(axis=1)


def _map(targets: np.ndarray, scores: np.ndarray) -> float:
    """Macro mAP of the images that were scored."""
    seen = _seen(scores)
    return metrics.macro(metrics.per_finding(targets[seen], scores[seen], ("ap",))["ap"])


def _environment(job: Job) -> dict[str, Any]:
    import timm
    import torch

    from cxrlt_ray import __version__

    return {
        "cxrlt_ray": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": device_.label(place(job)[2], torch.get_num_threads()),
    }


def epochs_of(about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The epochs of the first fold, which the scheduler saw."""
    return (epoch for epoch in about["epochs"] if epoch["fold"] == 0)
