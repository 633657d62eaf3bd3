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

import contextlib
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlt_ray.data.manifest import FRONTAL, MAIN, Manifest, codes
from cxrlt_ray.data.prepare import Shards, nearest
from cxrlt_ray.data.stream import Ingest, batches
from cxrlt_ray.errors import CxrltError, Diverged, UsageError
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.runs.store import FINISHED, PRUNED, REFIT, RUNNING, looked_at, write_predictions
from cxrlt_ray.storage import Store
from cxrlt_ray.training import device as device_
from cxrlt_ray.training import resume
from cxrlt_ray.training.config import ALL, OUTSIDE, TrialConfig
from cxrlt_ray.training.heartbeat import beat
from cxrlt_ray.training.resume import Midway
from cxrlt_ray.training.stage import Clock, Epoch, Job, Part, fit, place

if TYPE_CHECKING:
    import torch

Report = Callable[[dict[str, Any]], None]


def train(job: Job, name: str, config: TrialConfig, params: dict[str, Any], report: Report) -> None:
    """Train trial `name`, write what it leaves to RUN/trials/NAME and report after each epoch.

    Goes on from the last epoch that an earlier process ended, where it left one; the epoch is reported again then.
    Raises Diverged when the loss stays non-finite, CxrltError when another process has taken the trial over, and what
    torch raises (out of memory) as it is.
    """
    import torch

    from cxrlt_ray.models import weights

    if job.threads:
        torch.set_num_threads(job.threads)
    store = job.run / "trials" / name
    there = store.read_json("trial.json") if store.exists("trial.json") else {}
    if there.get("state") in (FINISHED, PRUNED):  # by a process that ended before it could say so
        last = {"epoch": config.total_epochs + 1, "images_per_second": there["images_per_second"]}
        report({"val_map": there["val_map"], **last})
        return
    before = resume.latest(store)
    if not _agreed(before is not None, job):
        before = None
    about: dict[str, Any] = {
        "name": name,
        "state": RUNNING,
        "params": params,
        "config": config.model_dump(),
        "findings": list(job.findings),
        "fingerprint": job.fingerprint,
        "weights": _sources(weights.source(config.staged()[0].spec())),
        "began": time.time(),
        "epochs": [],
        "val_map": None,
        **(before.about if before else {}),
        "environment": _environment(job),
        "attempt": there.get("attempt", 0) + 1,
    }
    if "again" in there:
        about["again"] = there["again"]
    keep = store if place(job)[0] == 0 else None
    if keep:
        keep.write_json("trial.json", about)
    trial = _Trial(job, config, _manifest(job.run), keep, about, report, before)
    try:
        for fold in range(trial.folds):
            trial.found.append(_Fold(trial, fold).scores_of())
    except _Enough:
        about["state"] = PRUNED
        _note(keep, about)
        if keep:
            resume.forget(keep)
        return
    about["val_map"] = _keep_predictions(job, keep, trial.found, about)
    if config.tta != "none" and keep and "tta" not in about:
        _keep_looks(job, config, keep, [validation for validation, _ in trial.found], about)
    if config.refit:
        _Refit(trial).run()
    about["state"] = FINISHED
    about["ended"] = time.time()
    _note(keep, about)
    if keep:
        resume.forget(keep)
    if job.folds > 1 or config.refit or config.tta != "none":
        speed = about["epochs"][-1]["images_per_second"]
        report({"val_map": about["val_map"], "epoch": config.total_epochs + 1, "images_per_second": speed})


class _Enough(Exception):
    """A trial that had been stopped, and is trained again because its files were damaged, is as far as it was."""


@dataclass
class _Trial:
    """What the folds of a trial share. store: None on all workers but the first. before: where it was cut off.

    found: the validation images and scores [N, C] of the folds that are done.
    """

    job: Job
    config: TrialConfig
    manifest: Manifest
    store: Store | None
    about: dict[str, Any]
    report: Report
    before: Midway | None
    found: list[tuple[Part, np.ndarray]] = field(default_factory=list)

    @property
    def folds(self) -> int:
        """How many models are trained on folds: one without folds."""
        return max(self.job.folds, 1)


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
    from cxrlt_ray.data.splits import assign_folds

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


class _Course:
    """One model's way through the stages, entered where an earlier process left it."""

    def __init__(self, trial: _Trial, fold: int) -> None:
        self.trial, self.fold = trial, fold
        self.job, self.about, self.store = trial.job, trial.about, trial.store
        before = trial.before
        self.before = before if before and before.fold == fold else None
        self.clock, self.done = Clock(self.about.get("seconds") if self.before else None), 0

    def walk(self, stages: list[TrialConfig], everything: bool, shared: bool) -> Any:
        """Train all stages; the model that is judged at last. shared: weights of outside stages are kept for others."""
        from cxrlt_ray import models

        model: Any = None
        for number, stage in enumerate(stages):
            kept = self.job.run / "stages"
            outside = number + 1 < len(stages) and stage.cohorts != MAIN
            key = self._key(stages[: number + 1]) if shared and outside else ""
            before = self.before if self.before and self.before.stage == number else None
            if self.before and number < self.before.stage:
                self.done += stage.epochs
                continue
            if key and not before and (taken := _taken(kept, key, self.job)):
                model = taken
                self.done += stage.epochs
                continue
            training = parts(self.trial.manifest, self.job, self.fold, stage.cohorts, everything)[0]
            if before and number:  # the shape of it, whose tensors are put back
                model = begin(self.job, stages[0], None, None)
            model = begin(self.job, stage, model, stages[number - 1] if number and not before else stages[0])
            for epoch in fit(self.job, stage, model, training, self.fold, self.clock, before):
                model = epoch.model
                self.judge(number, stage, epoch)
            self.done += stage.epochs
            if key and self.store:
                with kept.place(key) as folder:
                    folder.mkdir()
                    models.save(model, stage.spec(), self.job.findings, folder)
        return model

    def judge(self, number: int, stage: TrialConfig, epoch: Epoch) -> None:
        """An epoch of stage `number` is done."""

    def keep(self, number: int, epoch: Epoch, scores: np.ndarray | None = None) -> None:
        """Write the state after an epoch, with all scores so far."""
        import torch

        if not self.store:
            return
        _check_mine(self.store, self.about)
        found = [found for _, found in self.trial.found] + ([] if scores is None else [scores])
        tensors = {f"found/{fold}": torch.from_numpy(each) for fold, each in enumerate(found)}
        resume.keep(self.store, Midway(self.fold, number, epoch.number, self.about, {**epoch.state(), **tensors}))

    def _key(self, stages: list[TrialConfig]) -> str:
        """What the weights that these stages lead to are kept under, for every trial that has them."""
        told = [stage.model_dump(exclude={"stages", "system", "tta", "refit"}) for stage in stages]
        return hashlib.sha256(json.dumps([told, self.fold], sort_keys=True).encode()).hexdigest()[:12]


class _Fold(_Course):
    """The model of one fold, judged on its validation images after every epoch."""

    def __init__(self, trial: _Trial, fold: int) -> None:
        super().__init__(trial, fold)
        self.validation = parts(trial.manifest, trial.job, fold)[1]
        self.scores = np.full(self.validation.targets.shape, np.nan, np.float32)
        if trial.before and fold <= trial.before.fold:
            self.scores = trial.before.tensors[f"found/{fold}"].numpy()

    def scores_of(self) -> tuple[Part, np.ndarray]:
        """Train; the validation images, and their probabilities [N, C] by the last stage's best epoch."""
        before = self.trial.before
        if not before or before.fold <= self.fold:
            self.walk(self.trial.config.staged(), everything=False, shared=True)
        return self.validation, self.scores

    def judge(self, number: int, stage: TrialConfig, epoch: Epoch) -> None:
        """Score the validation images; the state is kept first, then the checkpoint and predictions if they are best.

        In this order an end in between costs nothing: what is kept is written again from the state.
        """
        job, about, clock, here = self.job, self.about, self.clock, self.done + epoch.number
        if not epoch.again:
            shards, amp = nearest(job.shards, stage.resolution), device_.autocast(stage.precision, place(job)[2])
            images, part = self.validation.image_id, self.validation
            scores = predict_part(epoch.model, shards, images, stage.resolution, stage, amp, job.ingest, part)
            told: dict[str, Any] = {
                "fold": self.fold,
                "stage": number,
                "epoch": here,
                "val_map": _map(part.targets, scores),
            }
            told |= {"loss": epoch.loss, "images_per_second": round(epoch.images_per_second, 1)}
            clock.lap("validation")
            about["epochs"].append(told)
            about["seconds"], about["ended"] = clock.seconds(), time.time()
            about["images_per_second"] = told["images_per_second"]
        best = best_epoch(about["epochs"], self.fold, number)
        if best["epoch"] == here:
            self.scores = self.scores if epoch.again else scores
            about["stage"] = number
        if job.folds <= 1:
            about["val_map"], about["best_epoch"] = best["val_map"], best["epoch"]
        if not epoch.again:
            self.keep(number, epoch, self.scores)
        if best["epoch"] == here:
            self._publish(stage, epoch.model)
        clock.lap("writing")
        _note(self.store, about)
        if self.fold == 0:
            speed = epoch.images_per_second or about["images_per_second"]
            self.trial.report({"val_map": best["val_map"], "epoch": here + 1, "images_per_second": speed})
            again = about.get("again", {})
            if again.get("state") == PRUNED and here + 1 >= again["curve"][-1][0]:
                raise _Enough
        clock.lap("reporting")

    def _publish(self, stage: TrialConfig, model: Any) -> None:
        """Write the checkpoint that is kept, and of a trial without folds the predictions."""
        from cxrlt_ray import models

        if not self.store:
            return
        with self.store.place(f"fold-{self.fold}") as folder:
            folder.mkdir()
            models.save(model, stage.spec(), self.job.findings, folder)
        if self.job.folds <= 1:
            _keep_predictions(self.job, self.store, [(self.validation, self.scores)], self.about)


class _Refit(_Course):
    """One more model, trained on train and validation images, its last stage for as many epochs as were best."""

    def __init__(self, trial: _Trial) -> None:
        super().__init__(trial, trial.folds)
        self.clock = Clock(self.about.get("refit", {}).get("seconds"))

    def run(self) -> None:
        """Train and keep it."""
        from cxrlt_ray import models

        stages = self.trial.config.staged()
        last, before = len(stages) - 1, sum(stage.epochs for stage in stages[:-1])
        best = [best_epoch(self.about["epochs"], fold, last)["epoch"] - before + 1 for fold in range(self.trial.folds)]
        stages[-1] = stages[-1].model_copy(update={"epochs": round(float(np.mean(best)))})
        model = self.walk(stages, everything=True, shared=False)
        if self.store:
            with self.store.place(REFIT) as folder:
                folder.mkdir()
                models.save(model, stages[-1].spec(), self.job.findings, folder)
        self.about["refit"] = {"epochs": stages[-1].epochs, "seconds": self.clock.seconds()}

    def judge(self, number: int, stage: TrialConfig, epoch: Epoch) -> None:
        """Nothing is held out to judge by: only the state is kept."""
        if not epoch.again:
            self.about["refit"] = {"epochs": epoch.number + 1, "seconds": self.clock.seconds()}
            self.keep(number, epoch)


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


def best_epoch(epochs: list[dict[str, Any]], fold: int, stage: int) -> dict[str, Any]:
    """The epoch whose checkpoint is kept, of a trial's record: the first of the best ones of a fold's stage."""
    of_stage = [e for e in epochs if e["stage"] == stage and e["fold"] == fold]
    best = of_stage[0]
    for each in of_stage:
        if each["val_map"] > best["val_map"]:
            best = each
    return best


def _taken(kept: Store, key: str, job: Job) -> Any:
    """The model that an earlier trial's stages led to, on every worker; None where it is not there, or damaged."""
    from cxrlt_ray import models

    model = None
    if kept.exists(f"{key}/model.safetensors"):
        with contextlib.suppress(Exception), kept.fetched(key) as folder:
            model = models.load(folder)[0]
    return model if _agreed(model is not None, job) else None


def _agreed(there: bool, job: Job) -> bool:
    """Whether it is there for all workers: a file may appear, or fail to be read, between their looks."""
    if place(job)[1] == 1:
        return there
    import torch

    flag = torch.tensor(float(there), device=place(job)[2])
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag > 0)


def _keep_looks(job: Job, config: TrialConfig, store: Store, folds: list[Part], about: dict[str, Any]) -> None:
    """Score the validation images under test-time augmentation too: what it gains, at what price."""
    from cxrlt_ray import models
    from cxrlt_ray.ensembling.score import looks_of, predict_looks

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


def _check_mine(store: Store, about: dict[str, Any]) -> None:
    """Raise CxrltError if the trial was begun anew elsewhere: a process thought dead must not write into it."""
    if store.read_json("trial.json").get("attempt", 0) != about["attempt"]:
        raise CxrltError(f"trial {about['name']} was begun anew in another process; this one ends.")


def _note(store: Store | None, about: dict[str, Any]) -> None:
    """Write trial.json, unless the trial was ended from outside: a worker group may be an epoch behind that."""
    if store:
        _check_mine(store, about)
        if store.read_json("trial.json")["state"] == RUNNING:
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
            beat()
            inputs = [pixels]
            if fused and part is not None:
                inputs += [torch.from_numpy(codes[batch.rows]).to(device) for codes in (part.study, part.view)]
            with amp():
                logits = model(*inputs)
            found = logits.float().sigmoid().cpu().numpy()
            if not np.isfinite(found).all():
                raise Diverged("diverged: the model's predictions are not finite; lower lr")
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
