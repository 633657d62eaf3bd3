"""How many images a sweep trains, validates and tests, and the seconds that a trial's epochs take by that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.objectives.registry import find_objective
from cxrlt_ray.runs.trial_config import ALL, OUTSIDE, TrialConfig
from cxrlt_ray.search.rates import PASSES, ModelRate, gain_of_frozen

# images of published cohorts, where a plan is for a number of images and the cohorts are only named
COHORTS = {
    "nih": 112_120, "chexpert": 223_414, "vindr": 18_000, "brax": 40_967, "padchest": 160_868,
    "synthetic": 1_600,  # 100 generated images of each of the 16 tail findings, as team A
}  # fmt: skip
SPLITS = {"train": 258_871, "val": 39_293, "test": 78_946}  # CXR-LT 2024's images

HALF = 2  # bytes of a number in half precision
STORED_SPEEDUP = 20.0  # of an epoch on stored features, assumed: benchmarks/features.py measures 4 to 240 by size


@dataclass(frozen=True)
class Workload:
    """How many images train, validate and are tested; K folds train K models a trial. outside: of other cohorts."""

    train: int
    val: int
    test: int
    folds: int = 1
    outside: dict[str, int] = field(default_factory=dict)

    def trained(self, cohorts: str) -> int:
        """Images that a stage of `cohorts` (TrialConfig.cohorts) trains on."""
        others = sum(self.outside.values())
        if cohorts in (MAIN, OUTSIDE, ALL):
            return {MAIN: self.train, OUTSIDE: others, ALL: self.train + others}[cohorts]
        return sum(self.train if name == MAIN else self.outside.get(name, 0) for name in cohorts.split("+"))

    @property
    def images(self) -> int:
        """All of them."""
        return self.train + self.val + self.test + sum(self.outside.values())

    @classmethod
    def of_count(cls, images: int, others: Iterable[str] = (), folds: int = 1, of_findings: bool = False) -> Workload:
        """So many images, split as those of CXR-LT 2024, and the published cohorts `others` beside them."""
        total = sum(SPLITS.values())
        train, val = (round(images * SPLITS[split] / total) for split in ("train", "val"))
        outside = {name: COHORTS[name] for name in others if name in COHORTS}
        workload = cls(train, val, images - train - val, outside=outside)
        workload = replace(workload, train=train + val) if folds > 1 and not of_findings else workload
        return workload._in_folds(folds, of_findings)

    @classmethod
    def of_manifest(cls, manifest: Manifest, folds: int = 1, of_findings: bool = False) -> Workload:
        """The images of a manifest as it is split; folds `of_findings` leave each model all of them."""
        main = manifest.table["cohort"] == MAIN
        counts = manifest.table.loc[main, "split"].value_counts()
        outside = manifest.table.loc[~main, "cohort"].value_counts().to_dict()
        train, val, test = (int(counts.get(split, 0)) for split in ("train", "val", "test"))
        return cls(train, val, test, outside=outside)._in_folds(folds, of_findings)

    def _in_folds(self, folds: int, of_findings: bool = False) -> Workload:
        """The training images divided into folds: each trains a model on the others and validates on one."""
        if folds <= 1:
            return self
        if of_findings:
            return replace(self, folds=folds)
        return replace(self, train=self.train * (folds - 1) // folds, val=self.train // folds, folds=folds)


def epoch_seconds(rate: ModelRate, workload: Workload, stage: TrialConfig | None = None) -> float:
    """One epoch of a trial: training images at the rate, validation images at a forward pass's.

    stage: whose cohorts train, and whose frozen backbone or layers save time.
    """
    train = workload.train if stage is None else workload.trained(stage.cohorts)
    training = rate.rate
    if stage is not None:
        training *= gain_of_frozen(stage) / shown_images(stage, rate.flops)
    return workload.folds * (train / training + workload.val / (PASSES * rate.rate))


def shown_images(stage: TrialConfig, flops: int) -> float:
    """What a training image of `stage` costs, in images by themselves: its other crops or the other view, and its text.

    flops: of scoring one image; 0: texts are not counted. Those of a frozen encoder are read once, for all trials.
    """
    from cxrlt_ray.text.cost import training_flops
    from cxrlt_ray.text.encoder_spec import FROZEN

    needs = find_objective(stage.objective).needs
    images = 2.0 if needs.pairs else float(needs.crops)
    stored = needs.vectors and stage.text_tuning == FROZEN
    if needs.texts and flops and not stored:
        images += training_flops(stage.objective_spec().text_spec()) / (PASSES * flops)
    return images


@dataclass(frozen=True)
class FeatureNeed:
    """The stored features that a frozen stage reads: of an image `tokens` of `width` numbers. size: bytes in all.

    shared: by all trials, as no stage before trains the backbone.
    """

    backbone: str
    resolution: int
    tokens: int
    width: int
    copies: int
    size: float
    shared: bool


def feature_needs(config: TrialConfig, workload: Workload) -> list[FeatureNeed | None]:
    """What each stage of a trial reads of stored features; None where it trains the backbone or augments anew."""
    from cxrlt_ray import models

    needs: list[FeatureNeed | None] = []
    shared = True
    for stage in config.staged():
        shared = shared and stage.frozen_backbone
        if (copies := stage.frozen_copies) is None:
            needs.append(None)
            continue
        tokens, width = models.feature_shape(stage.spec())
        images = workload.val + max(copies, 1) * workload.trained(stage.cohorts)
        size = HALF * float(images * tokens * width)
        needs.append(FeatureNeed(stage.backbone, stage.resolution, tokens, width, copies, size, shared))
    return needs


def trial_seconds(
    config: TrialConfig, rates: Mapping[tuple[str, int], ModelRate], workload: Workload, features: float = 0
) -> list[float]:
    """Seconds of every epoch of a trial, stage after stage; what comes after them (refit) is added to the last.

    features: bytes that stored features may take. Where a frozen stage's fit, they are computed once; that an earlier
    trial may have stored them is not counted on.
    """
    seconds: list[float] = []
    stages = config.staged()
    needs = feature_needs(config, workload) if features else [None] * len(stages)
    for stage, need in zip(stages, needs, strict=True):
        epoch = epoch_seconds(rates[stage.backbone, stage.resolution], workload, stage)
        computed = max(need.copies, 1) if need and need.size <= features else stage.epochs
        seconds += [epoch if number < computed else epoch / STORED_SPEEDUP for number in range(stage.epochs)]
    if config.refit:
        seconds[-1] += sum(seconds) / workload.folds
    return seconds
