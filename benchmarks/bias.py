"""Is a hidden bias found, and only where there is one? `python benchmarks/bias.py --write` (minutes on two cores).

Cohorts of the phantom, of which one sign is drawn fainter in women (`phantom --hidden-bias`). Each is read, its
findings are compared by sex and race (`evaluate --by sex,race`), and what stands after Holm's correction is counted:
the planted difference, and false flags. Race has nothing to do with anything in the phantom, nor has sex but for the
bias.

Reader model: training thirty networks would say no more of the test and cost hours. How plain a sign is, is measured
instead: the root mean square of what its pixels change, in pictures drawn with and without it, of each strength and
view, and faded. An image's score is that, as a multiple of the finding's mean times DETECTED, plus noise of standard
deviation 1, half of its variance the study's; as a probability it is calibrated for the mean sign. AUROC is about .8.

`--plain DIR` (a phantom without bias; else one of `--images` is drawn) adds a trained model: principal components of 32
x 32 pixels and a logistic regression, trained on its training images, on its validation and test images with the sign
as it was and fainter in women.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from report import options, publish

from cxrlt_ray.data.cohort import read_cohort
from cxrlt_ray.data.groups import group_columns, races
from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.evaluation.groups import MEAN, GroupReport, compare_groups
from cxrlt_ray.phantom import write_phantom
from cxrlt_ray.phantom.labels import PhantomCohort, draw_cohort, in_group
from cxrlt_ray.phantom.pictures import Picture, draw_picture
from cxrlt_ray.phantom.tree import RACES

FINDINGS = ("Pleural Effusion", "Edema", "Consolidation", "Pneumothorax", "Infiltration")
HIDDEN, GROUP = FINDINGS[0], "F"
DETECTED = 1.5  # standard deviations by which the mean sign stands out
STRENGTHS = np.linspace(0.3, 1.0, 15)  # of signs, as the phantom draws them
SIZE, ROUNDS, EDGE, COMPONENTS = 64, 200, 32, 150
STATED = 2000  # images for which the bars are set, at bias 0.5 and at 0
ROWS = ((0.0, STATED), (0.5, STATED), (0.3, STATED), (0.0, 1000), (0.5, 1000))  # bias and images
BUILD = Path(__file__).parents[1] / "build" / "bias"


@dataclass(frozen=True)
class Plainness:
    """How much a sign of each of STRENGTHS changes a picture's pixels, [2, STRENGTHS]: frontal, lateral."""

    change: np.ndarray

    @classmethod
    def measured(cls, finding: str, left: float) -> Plainness:
        """Of drawn pictures with and without the sign, of whose change the share `left` stays."""
        change = np.zeros((2, len(STRENGTHS)))
        for lateral in (False, True):
            for k, strength in enumerate(STRENGTHS.tolist()):
                who = (1000 + k, 2000 + k, f"{k + 1:08x}-x", lateral, False)
                found = draw_picture(Picture(*who, {finding: (strength, k % 2)}, {finding: left}), SIZE, 0)
                without = draw_picture(Picture(*who, {}), SIZE, 0)
                change[int(lateral), k] = np.sqrt(np.mean((found.astype(float) - without) ** 2))
        return cls(change)

    def of(self, strength: np.ndarray, lateral: np.ndarray) -> np.ndarray:
        """The change of signs of these strengths [N] in these views."""
        nearest = np.abs(strength[:, None] - STRENGTHS).argmin(axis=1)
        return self.change[lateral.astype(int), nearest]


def read(
    cohort: PhantomCohort, plain: list[Plainness], faded: Plainness, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Targets int8 [N, C] and the reader's probabilities [N, C] of a cohort whose sign HIDDEN is fainter in GROUP."""
    study, lateral = cohort.images["study"].to_numpy(), cohort.images["lateral"].to_numpy(bool)
    columns = [ALL_FINDINGS.index(name) for name in FINDINGS]
    targets = cohort.truth[study][:, columns].astype(np.int8)
    women = in_group(cohort, GROUP)[cohort.studies["subject"].to_numpy()][study]
    half = np.sqrt(0.5)
    noise = half * rng.normal(size=(len(cohort.studies), len(columns)))[study] + half * rng.normal(size=targets.shape)
    evidence = noise
    for c, sign in enumerate(plain):
        strength = cohort.strength[study, columns[c]]
        change = sign.of(strength, lateral)
        if c == 0:
            change = np.where(women, faded.of(strength, lateral), change)
        evidence[:, c] += targets[:, c] * DETECTED * change / sign.change.mean()
    share = targets.mean(axis=0)
    logits = DETECTED * evidence - DETECTED**2 / 2 + np.log(share / (1 - share))
    return targets, 1 / (1 + np.exp(-logits))


def compared(cohort: PhantomCohort, targets: np.ndarray, scores: np.ndarray, seed: int) -> GroupReport:
    """The cohort by sex and race; races are drawn by subject, as the phantom's tables draw them."""
    subject = cohort.studies["subject"].to_numpy()[cohort.images["study"].to_numpy()]
    share = np.array(list(RACES.values()))
    drawn = np.random.default_rng(seed).choice(list(RACES), len(cohort.subjects), p=share / share.sum())
    family = races(pd.Series(drawn)).replace("UNKNOWN", "unknown").to_numpy(object)
    sex = np.where(cohort.subjects["female"], "F", "M").astype(object)
    columns = {"sex": sex[subject], "race": family[subject]}
    return compare_groups(targets, scores, FINDINGS, columns, subject, rounds=ROUNDS, seed=seed)


def verdict(report: GroupReport) -> tuple[bool, list[str]]:
    """Whether the planted difference is flagged (AUROC or FNR of HIDDEN, worse for GROUP), and the other flags.

    The mean of findings and the calibration of HIDDEN by sex move with the planted difference: they are not false.
    """
    hits = [flag for flag in report.flags if flag.by == "sex" and flag.finding == HIDDEN and flag.worse == GROUP]
    moved = [flag for flag in report.flags if flag.by == "sex" and flag.finding in (HIDDEN, MEAN)]
    return bool(hits), [f"{f.by} {f.group} {f.finding} {f.metric}" for f in report.flags if f not in moved]


def simulated(seeds: int, null_seeds: int) -> tuple[list[str], bool]:
    """A row a bias and size: found in how many cohorts, false flags in how many; and whether the bars hold."""
    plain = [Plainness.measured(name, 1.0) for name in FINDINGS]
    rows = ["| bias | images | found | with a false flag | AUROC, women | men | tests |", "|" + "---|" * 7]
    good = True
    for bias, images in ROWS:
        faded = Plainness.measured(HIDDEN, 1 - bias)
        count = seeds if bias else null_seeds
        results = [_cohort(bias, images, seed, plain, faded) for seed in range(count)]
        hits, false = (sum(result[k] for result in results) for k in (0, 1))
        women, men = np.nanmean([result[2] for result in results], axis=0)
        found = f"{hits} of {count}" if bias else "-"
        tests = results[0][3]
        rows.append(f"| {bias:g} | {images:,} | {found} | {false} of {count} | {women:.3f} | {men:.3f} | {tests} |")
        print(rows[-1], flush=True)
        if images == STATED and bias in (0.0, 0.5):
            good &= hits >= 0.9 * count if bias else false <= count / 20
    return rows, good


def _cohort(
    bias: float, images: int, seed: int, plain: list[Plainness], faded: Plainness
) -> tuple[bool, bool, list[float], int]:
    """Of one cohort: whether the bias was found, whether a flag is false, HIDDEN's AUROC by sex, and how many tests."""
    number = 1000 * int(100 * bias) + seed
    cohort = draw_cohort(images, number)
    targets, scores = read(cohort, plain, faded, np.random.default_rng(number))
    report = compared(cohort, targets, scores, number)
    hit, others = verdict(report)
    # without a bias every flag is false, by sex and of the finding too
    return hit, bool(others if bias else report.flags), _by_sex(report, "auroc"), report.tests


def _by_sex(report: GroupReport, metric: str) -> list[float]:
    """A metric of HIDDEN in women and in men."""
    cells = {group.group: group.cells[0] for group in report.groups if group.by == "sex"}
    return [cell.scores[metric].value if (cell := cells[sex]) else float("nan") for sex in "FM"]


def trained(folder: Path, biases: tuple[float, ...]) -> list[str]:
    """A model trained on a plain phantom's training images, on the others as they are and with the bias."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    manifest = read_cohort(str(folder), task="task1").manifest
    train, scored = manifest.of_split("train"), manifest.of_split("val", "test")
    pixels = {path: _small(folder / path) for path in manifest.table["path"]}
    x = np.array([pixels[path] for path in train.table["path"]])
    y = train.targets(FINDINGS)
    model = make_pipeline(PCA(COMPONENTS, random_state=0), StandardScaler())
    features = model.fit_transform(x)
    readers = [LogisticRegression(C=0.05, max_iter=500).fit(features, column) for column in y.T]
    columns = group_columns(scored, ["sex", "race"])
    lines = []
    for strength in (0.0, *biases):
        seen = dict(pixels)
        if strength:
            seen |= _redrawn(folder, scored.table["path"].tolist(), strength)
        of_images = model.transform(np.array([seen[path] for path in scored.table["path"]]))
        scores = np.column_stack([reader.predict_proba(of_images)[:, 1] for reader in readers])
        subjects = scored.table["subject_id"].to_numpy()
        report = compare_groups(scored.targets(FINDINGS), scores, FINDINGS, columns, subjects, rounds=ROUNDS)
        hit, others = verdict(report)
        flags = others if strength else [f"{f.by} {f.group} {f.finding} {f.metric}" for f in report.flags]
        shown = "; ".join(
            f"{metric} women {women:.3f}, men {men:.3f}"
            for metric in ("auroc", "fnr")
            for women, men in [_by_sex(report, metric)]
        )
        lines.append(
            f"Trained, bias {strength:g}, {report.images:,} images: {HIDDEN} {shown}; {'found' if hit else 'missed'}; "
            f"{report.tests} tests, false flags: {', '.join(flags) or 'none'}."
        )
        print(lines[-1], flush=True)
    return lines


def _small(path: Path) -> np.ndarray:
    return _vector(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))


def _vector(image: np.ndarray) -> np.ndarray:
    small = cv2.resize(image, (EDGE, EDGE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return ((small - small.mean()) / (small.std() + 1)).ravel()


def _redrawn(folder: Path, paths: list[str], bias: float) -> dict[str, np.ndarray]:
    """Those of the pictures that the bias changes, by path."""
    from cxrlt_ray.phantom import _studies
    from cxrlt_ray.phantom.options import PhantomOptions

    arguments = json.loads((folder / "phantom.json").read_text())
    images, size, seed = (int(arguments[key]) for key in ("images", "size", "seed"))
    chosen = PhantomOptions(hidden_bias=bias, hidden_finding=HIDDEN, hidden_group=GROUP)
    wanted, changed = set(paths), {}
    for study in _studies(draw_cohort(images, seed), chosen):
        if HIDDEN in study.faded and HIDDEN in study.findings:
            for dicom, path, lateral, portable in study.images:
                if path in wanted:
                    what = (lateral, portable, study.findings, study.faded)
                    picture = Picture(study.subject_id, study.study_id, dicom, *what)
                    changed[path] = _vector(draw_picture(picture, size, seed))
    return changed


def main() -> None:
    parser = options(__doc__, {"seeds": 10, "null-seeds": 20, "images": 8000})
    parser.add_argument("--plain", type=Path, help="a phantom without bias, for the trained model; drawn without it")
    parser.add_argument("--no-trained", action="store_true", help="leave the trained model out")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    started = time.monotonic()
    lines, good = simulated(args.seeds, args.null_seeds)
    if not args.no_trained:
        folder = args.plain or BUILD / f"phantom-{args.images}"
        if not args.plain:
            write_phantom(folder, args.images, SIZE, 0)
        lines += ["", *(f"- {line}" for line in trained(folder, (0.5, 0.7)))]
    lines += ["", f"Bars, bias 0.5 and 0, {STATED:,} images: {'hold' if good else 'DO NOT HOLD'}."]
    minutes = (time.monotonic() - started) / 60
    publish("bias", "A hidden bias is found", f", {minutes:.0f} min", lines, args.write)


if __name__ == "__main__":
    main()
