"""What calibration is worth, and whether its intervals hold: `python benchmarks/calibration.py --write` (minutes).

A population has 12 findings of prevalence .3 to .002 in geometric steps, subjects of two images whose scores are
correlated. Labels follow the true logits. Scores are these as they are ("calibrated"), or have planted faults: logits
x 3, + 1 ("planted"), and an intercept of each finding's own, as losses weighted by rarity leave it ("by finding").
Each of `--seeds` samples of `--images` images is calibrated and judged by cross-fitting, and on as many new images.
Intervals of uncalibrated scores are tried on `--samples` samples of a third of the images: those of log loss, Brier
score and ECE are to hold the mean over samples, those of a reliability curve's rates the mean true probability of the
bin's images. Intervals of changes are for a calibration as it was fitted: they leave out how the fit varies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from report import options, publish

from cxrlt_ray.evaluation.calibration import Calibration, calibrate
from cxrlt_ray.evaluation.calibration_change import MEASURES, CalibrationChange, calibration_change
from cxrlt_ray.evaluation.calibrators import CALIBRATORS
from cxrlt_ray.evaluation.estimate import Estimate
from cxrlt_ray.evaluation.reliability import reliability_curve

PREVALENCE = np.geomspace(0.3, 0.002, 12)
FINDINGS = tuple(f"finding {k}" for k in range(len(PREVALENCE)))
ROUNDS = 300
LEAST_FALL, MOST_RISE = 0.0, 0.001  # the bars: planted and calibrated log loss
FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "calibrated": lambda logits: logits,
    "planted": lambda logits: 3 * logits + 1,
    "by finding": lambda logits: logits - np.log(PREVALENCE / (1 - PREVALENCE)) - 2,
}


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits."""
    return 1 / (1 + np.exp(-logits))


def sample(rng: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True logits [N, C], labels int8 [N, C], subjects [N]."""
    subject = np.arange(images) // 2
    shared, own = rng.normal(size=(images // 2 + 1, len(FINDINGS))), rng.normal(size=(images, len(FINDINGS)))
    logits = np.sqrt(1.5) * (shared[subject] + own) + np.log(PREVALENCE / (1 - PREVALENCE)) - 1
    return logits, (rng.random(logits.shape) < sigmoid(logits)).astype(np.int8), subject


def tried(fault: str, seed: int, images: int) -> tuple[CalibrationChange, CalibrationChange, Calibration]:
    """The change on validation, cross-fitted, that on new images, and the calibration."""
    rng, bend = np.random.default_rng(seed), FAULTS[fault]
    logits, targets, groups = sample(rng, images)
    scores = sigmoid(bend(logits))
    fitted = calibrate(targets, scores, groups, FINDINGS, seed=seed)
    crossed = calibration_change(targets, scores, fitted.calibrated, groups, FINDINGS, ROUNDS, seed)
    logits, targets, groups = sample(rng, images)
    new = sigmoid(bend(logits))
    after = fitted.calibration.apply(new, FINDINGS)
    return crossed, calibration_change(targets, new, after, groups, FINDINGS, ROUNDS, seed), fitted.calibration


def lines(fault: str, results: list[tuple[CalibrationChange, CalibrationChange, Calibration]]) -> Iterator[str]:
    """Rows of the table: a measure on a set of images."""
    for k, where in enumerate(("validation, cross-fitted", "new images")):
        changes = [result[k].mean for result in results]
        for measure in MEASURES:
            before, after = ([getattr(getattr(c, side), measure) for c in changes] for side in ("before", "after"))
            differences = [c.differences[measure] for c in changes]
            shown = [f"{np.mean([one.value for one in part]):.4f}" for part in (before, after)]
            values = np.array([one.value for one in differences])
            spread = f"{values.mean():+.4f} ({values.min():+.4f} to {values.max():+.4f})"
            below = sum(one.high < 0 for one in differences)
            cells = (fault, where, measure, *shown, spread, f"{below}/{len(values)}")
            yield f"| {' | '.join(cells)} |"


def coverage(fault: str, samples: int, images: int) -> str:
    """How often intervals of uncalibrated scores hold the truth: a row of the second table."""
    means: dict[str, list[Estimate]] = {name: [] for name in MEASURES}
    of_findings: dict[str, list[list[Estimate]]] = {name: [] for name in MEASURES}
    rates = []
    for seed in range(samples):
        logits, targets, groups = sample(np.random.default_rng([seed, 1]), images)
        scores = sigmoid(FAULTS[fault](logits))
        change = calibration_change(targets, scores, scores, groups, FINDINGS, ROUNDS, seed)
        for name in MEASURES:
            means[name].append(getattr(change.mean.before, name))
            of_findings[name].append([getattr(one.before, name) for one in change.findings.values()])
        for c in range(0, len(FINDINGS), 3):
            order, bins = (
                np.argsort(scores[:, c]),
                reliability_curve(targets[:, c], scores[:, c], groups, rounds=ROUNDS, seed=seed),
            )
            ends = np.cumsum([one.images for one in bins])
            true = [sigmoid(logits[rows, c]).mean() for rows in np.split(order, ends[:-1])]
            rates += [one.rate.low <= p <= one.rate.high for one, p in zip(bins, true, strict=True) if one.rate.known]
    cells = [f"{holding(means[name]):.1%}" for name in MEASURES]
    by_finding = (
        np.nanmean([holding(list(part)) for part in zip(*of_findings[name], strict=True)]) for name in MEASURES
    )
    cells += [*(f"{share:.1%}" for share in by_finding), f"{np.mean(rates):.1%}"]
    return f"| {fault} | {' | '.join(cells)} |"


def holding(estimates: list[Estimate]) -> float:
    """How often the interval, where there is one, holds the mean over samples."""
    truth = np.mean([one.value for one in estimates])
    held = [one.low <= truth <= one.high for one in estimates if one.known]
    return float(np.mean(held)) if held else float("nan")


def main() -> None:
    """Try each fault on each seed."""
    args = options(__doc__, {"images": 3000, "seeds": 10, "samples": 200}).parse_args()
    rows, notes = [], []
    for fault in FAULTS:
        results = []
        for seed in range(args.seeds):
            results.append(tried(fault, seed, args.images))
            print(f"{fault}, seed {seed} done", flush=True)
        rows += lines(fault, results)
        taken = Counter(one.method for *_, kept in results for one in kept.findings.values())
        notes.append(f"- {fault}: {', '.join(f'{name} {taken[name]}' for name in CALIBRATORS)}")
        worst = max(c.mean.differences["log_loss"].value for c, _, _ in results)
        lowest = max(c.mean.differences["log_loss"].high for c, _, _ in results)
        if fault == "planted":
            notes.append(f"  bar: every interval below 0: {lowest < LEAST_FALL} (highest upper end {lowest:+.4f})")
        elif fault == "calibrated":
            notes.append(f"  bar: log loss rises by less than .001: {worst < MOST_RISE} (most {worst:+.5f})")
    head = ["scores", "images", "mean over findings", "before", "after", "after less before: mean (range)"]
    head += ["intervals below 0"]
    held = ["intervals that hold", *MEASURES, *(f"{name} of a finding" for name in MEASURES), "rate in a curve's bin"]
    second = [f"| {' | '.join(held)} |", "|" + "---|" * len(held)]
    second += [coverage(fault, args.samples, args.images // 3) for fault in FAULTS]
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]
    conditions = (
        f": {args.seeds} samples of {args.images:,} images, 12 findings. Methods taken, over findings and samples:"
    )
    publish("calibration", "Calibration", conditions, [*notes, "", *table, "", *second], args.write)


if __name__ == "__main__":
    main()
