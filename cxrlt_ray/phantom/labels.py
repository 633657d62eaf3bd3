"""Subjects, studies, images, views and findings of the phantom cohort, without pictures.

Everything is vectorised over studies, so that the release's own 377,110 rows take seconds. Findings
follow a factor model: each study carries a few hidden factors (heart failure, infection, trauma ...),
half of them its subject's, and a finding is present in the studies whose latent score is highest, so
that counts are exact: the release's share, but never under a floor that lets it be learned and scored.
Figures: CXR-LT 2024 release (train: 258,871 images, 155,823 studies, 45,480 subjects).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.data.age_bands import age_bands
from cxrlt_ray.data.tasks import ALL_FINDINGS, TASK1, TASK2, TASK3
from cxrlt_ray.errors import UsageError
from cxrlt_ray.phantom.options import PLAIN, SEXES, PhantomOptions

SPLIT_IMAGES = {"train": 258_871, "val": 39_293, "test": 78_946}
RELEASE_IMAGES = 377_110
RELEASE_GOLD = 406
STUDY_SIZES = {1: 69_478, 2: 71_298, 3: 13_529, 4: 1_422, 5: 67, 6: 24, 7: 1, 8: 2, 9: 1, 11: 1}
SUBJECTS_PER_STUDY = 45_480 / 155_823
# images of train by ViewPosition; the handful of rare ones is made up to a total of 17
MISSING_VIEW = 10_734 / 258_871
RARE_VIEWS = ("LAO", "RAO", "PA LLD", "XTABLE LATERAL", "AP AXIAL", "AP LLD", "AP RLD", "PA RLD", "SWIMMERS", "LPO")
RARE_VIEW = 17 / 258_871

# positives among the 258,871 training images; the five of task 3 are guesses, the release hides them
_TASK1_POSITIVES = (
    3409, 65376, 199, 4239, 74738, 168, 15371, 37256, 3661, 29628, 1169, 2803, 11568, 2965, 3986, 646, 727, 10087, 778,
    129, 2338, 77482, 5288, 7531, 34292, 66401, 616, 3272, 704, 46660, 516, 13858, 1631, 903, 8919, 172, 2046, 86079,
    3336, 2078,
)  # fmt: skip
_TRAIN_POSITIVES = dict(zip(TASK1, _TASK1_POSITIVES, strict=True)) | {
    "Bulla": 1800,
    "Cardiomyopathy": 1600,
    "Hilum": 15000,
    "Osteopenia": 3900,
    "Scoliosis": 6500,
}
PREVALENCE = {name: _TRAIN_POSITIVES[name] / SPLIT_IMAGES["train"] for name in ALL_FINDINGS}
# of task 3's findings among the test images, inferred: an average precision of team G's (the paper's supplement) over
# its lift above chance; Hilum is about 87 % of the five's positives
TRUE_PREVALENCE = {"Bulla": 0.0008, "Cardiomyopathy": 0.0016, "Hilum": 0.12, "Osteopenia": 0.0017, "Scoliosis": 0.014}

# hidden factors and how strongly (correlation) they drive a finding's latent score
FACTORS: dict[str, dict[str, float]] = {
    "heart failure": {
        "Cardiomegaly": 0.65, "Edema": 0.75, "Pleural Effusion": 0.6, "Enlarged Cardiomediastinum": 0.4,
        "Cardiomyopathy": 0.6, "Support Devices": 0.4, "Atelectasis": 0.35, "Pulmonary Hypertension": 0.4,
        "Lung Opacity": 0.25, "Hilum": 0.2,
    },
    "infection": {
        "Pneumonia": 0.7, "Consolidation": 0.7, "Infiltration": 0.5, "Lung Opacity": 0.6, "Tuberculosis": 0.3,
        "Pleural Effusion": 0.2, "Adenopathy": 0.2,
    },
    "trauma": {
        "Fracture": 0.7, "Rib Fracture": 0.7, "Clavicle Fracture": 0.6, "Pneumothorax": 0.5,
        "Subcutaneous Emphysema": 0.7, "Pneumomediastinum": 0.6, "Hydropneumothorax": 0.4, "Support Devices": 0.25,
        "Pneumoperitoneum": 0.2,
    },
    "tumour": {
        "Mass": 0.6, "Nodule": 0.5, "Adenopathy": 0.5, "Lung Lesion": 0.6, "Hilum": 0.4, "Pleural Other": 0.3,
        "Lobar Atelectasis": 0.3, "Pleural Thickening": 0.2,
    },
    "age": {
        "Tortuous Aorta": 0.6, "Calcification of the Aorta": 0.6, "Kyphosis": 0.6, "Osteopenia": 0.6, "Hernia": 0.4,
        "Cardiomegaly": 0.25, "Granuloma": 0.3, "Scoliosis": 0.2, "Emphysema": 0.3, "Fibrosis": 0.2,
    },
    "chronic lung": {
        "Emphysema": 0.6, "Bulla": 0.6, "Fibrosis": 0.5, "Pleural Thickening": 0.5, "Tuberculosis": 0.4,
        "Granuloma": 0.3, "Fissure": 0.2, "Nodule": 0.2, "Infarction": 0.2, "Pulmonary Embolism": 0.2,
        "Pulmonary Hypertension": 0.3, "Round(ed) Atelectasis": 0.4, "Atelectasis": 0.2,
    },
}  # fmt: skip
AGE = list(FACTORS).index("age")
# a finding of the left always comes with that of the right
IMPLIES = (
    ("Rib Fracture", "Fracture"),
    ("Clavicle Fracture", "Fracture"),
    ("Lobar Atelectasis", "Atelectasis"),
    ("Round(ed) Atelectasis", "Atelectasis"),
    ("Hydropneumothorax", "Pneumothorax"),
    ("Hydropneumothorax", "Pleural Effusion"),
    ("Cardiomyopathy", "Cardiomegaly"),
)
NORMAL = ALL_FINDINGS.index("Normal")
FLOOR = {"train": 10, "val": 4, "test": 5}
NOISE = 0.04  # of a finding's positives in train: this many omitted, and as many invented
MOST = 4  # with `apart`, a finding of task 3 is in at most one of so many test studies
RARE = 20  # findings with at most so many positive studies get them from different subjects, and no noise
POSITIVE, UNCERTAIN, NEGATED, SILENT = 1, -1, 0, 2


@dataclass(frozen=True)
class PhantomCohort:
    """A drawn cohort: S studies (rows of the arrays and of `studies`), N images.

    subjects: subject_id, split, age (years), female.  studies: study_id, subject (row), split.
    images: dicom_id, study (row), view (release's ViewPosition, None if missing), lateral, sorted by subject
    and study.  gold: rows of `images`, each of its own test study.  truth, labels: bool [S, 45] in the order
    of ALL_FINDINGS; labels differ from truth in train only.  strength: float32 [S, 45] in (0, 1], how plain a
    sign is drawn.  side: int8 [S, 45], 0 the patient's right, 1 left.  mention: int8 [S, 45], what the report
    says: POSITIVE, UNCERTAIN, NEGATED or SILENT.
    """

    subjects: pd.DataFrame
    studies: pd.DataFrame
    images: pd.DataFrame
    gold: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    strength: np.ndarray
    side: np.ndarray
    mention: np.ndarray


def split_sizes(images: int) -> dict[str, int]:
    """Images of each split: the release's shares; at 377,110 its very counts."""
    val, test = (max(2, round(images * SPLIT_IMAGES[name] / RELEASE_IMAGES)) for name in ("val", "test"))
    return {"train": images - val - test, "val": val, "test": test}


def in_group(cohort: PhantomCohort, group: str) -> np.ndarray:
    """Which subjects are of a sex, F or M, or an age band, bool [subjects]."""
    if group in SEXES:
        return (cohort.subjects["female"] == (group == "F")).to_numpy()
    return (age_bands(cohort.subjects["age"]) == group).to_numpy()


def draw_cohort(images: int, seed: int, options: PhantomOptions = PLAIN) -> PhantomCohort:
    """Draw a cohort of `images` images; the same for the same arguments.

    Raises UsageError where the test split has too few studies for `options.apart`.
    """
    prevalence = PREVALENCE | (TRUE_PREVALENCE if options.true_counts else {})
    learned = prevalence | {name: max(prevalence[name], options.enriched) for name in TASK3}
    rng = np.random.default_rng([seed, 1])
    sizes = {name: _study_sizes(count, rng) for name, count in split_sizes(images).items()}
    studies, subjects, factors = _people(sizes, rng)
    subject = studies["subject"].to_numpy()
    split = studies["split"].to_numpy()
    latent = _latent(factors, subject, rng)
    truth = np.zeros((len(studies), len(ALL_FINDINGS)), bool)
    for name in sizes:
        rows = np.flatnonzero(split == name)
        if name == "test" and options.apart:
            truth[rows] = _findings_apart(latent[rows], subject[rows], prevalence, options.apart, seed)
        else:
            shares = prevalence if name == "test" else learned
            truth[rows] = _findings(latent[rows], subject[rows], shares, dict.fromkeys(ALL_FINDINGS, FLOOR[name]))
    labels = _with_noise(truth, np.flatnonzero(split == "train"), rng)
    strength = rng.uniform(0.3, 1.0, truth.shape).astype(np.float32)
    side = (rng.random(truth.shape, np.float32) < 0.5).astype(np.int8)
    mention = _mentions(truth, strength, prevalence, rng)
    if options.unmentioned:
        _leave_out(mention, truth, options.unmentioned, np.random.default_rng([seed, 4]))
    table = _images(np.concatenate(list(sizes.values())), rng)
    gold = _gold(table, truth, split, images, rng)
    return PhantomCohort(subjects, studies, table, gold, truth, labels, strength, side, mention)


def _study_sizes(images: int, rng: np.random.Generator) -> np.ndarray:
    """Images of each study, in the release's distribution, summing to `images`."""
    share = np.array(list(STUDY_SIZES.values()), float)
    sizes = rng.choice(list(STUDY_SIZES), size=images, p=share / share.sum())
    if images > 200:
        sizes[0] = 11  # the one study of eleven, in cohorts where it does not weigh
    ends = np.cumsum(sizes)
    last = int(np.searchsorted(ends, images))
    sizes = sizes[: last + 1].copy()
    sizes[last] -= ends[last] - images
    return rng.permutation(sizes)


def _people(sizes: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """The studies and subjects tables, and the subjects' hidden factors float32 [subjects, factors]."""
    owners, splits = [], []
    first = 0
    for count in (len(s) for s in sizes.values()):
        people = max(1, round(count * SUBJECTS_PER_STUDY))
        weight = rng.exponential(size=people)  # exponential weights give the long tail of frequent patients
        extra = rng.choice(people, size=count - people, p=weight / weight.sum())
        owners.append(first + np.sort(np.concatenate([np.arange(people), extra])))
        splits.append(people)
        first += people
    subject = np.concatenate(owners)
    names = list(sizes)
    factors = rng.standard_normal((first, len(FACTORS)), np.float32)
    subjects = pd.DataFrame(
        {
            "subject_id": 10_000_000 + rng.choice(10_000_000, size=first, replace=False),
            "split": np.repeat(names, splits),
            "age": np.clip(60 + 16 * factors[:, AGE], 18, 91).astype(int),
            "female": rng.random(first) < 0.48,
        }
    )
    studies = pd.DataFrame(
        {
            "study_id": 50_000_000 + rng.choice(10_000_000, size=len(subject), replace=False),
            "subject": subject,
            "split": np.repeat(names, [len(s) for s in sizes.values()]),
        }
    )
    return studies, subjects, factors


def _latent(factors: np.ndarray, subject: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Latent scores float32 [S, 45], each about standard normal: half the subject's, half the study's own."""
    studies, half = len(subject), np.float32(np.sqrt(0.5))
    mixed = half * factors[subject] + half * rng.standard_normal((studies, factors.shape[1]), np.float32)
    weights = np.zeros((len(FACTORS), len(ALL_FINDINGS)), np.float32)
    for row, driven in enumerate(FACTORS.values()):
        for name, weight in driven.items():
            weights[row, ALL_FINDINGS.index(name)] = weight
    own = np.sqrt(np.clip(1 - (weights**2).sum(axis=0), 0.05, 1)).astype(np.float32)
    lasting = rng.standard_normal((len(factors), len(ALL_FINDINGS)), np.float32)[subject]
    latent = mixed @ weights + own * half * (lasting + rng.standard_normal((studies, len(ALL_FINDINGS)), np.float32))
    # a normal study is one without other findings
    latent[:, NORMAL] = -mixed.sum(axis=1) + 1.5 * rng.standard_normal(studies, np.float32)
    return latent


def _findings(
    latent: np.ndarray,
    subject: np.ndarray,
    prevalence: dict[str, float],
    floor: dict[str, int],
    implies: tuple[tuple[str, str], ...] = IMPLIES,
) -> np.ndarray:
    """Findings bool [S, 45] of one split: the highest latent scores, exact in number; changes `latent`."""
    studies = len(latent)
    truth = np.zeros(latent.shape, bool)
    parents = {parent for _, parent in implies}
    order = ["Normal", *(n for n in ALL_FINDINGS if n not in parents and n != "Normal"), *sorted(parents)]
    # a finding that is itself implied by another must be drawn after it: Fracture, Atelectasis ... come last
    for name in order:
        column = ALL_FINDINGS.index(name)
        for child, parent in implies:
            if parent == name:
                latent[truth[:, ALL_FINDINGS.index(child)], column] += 100
        implied = int((latent[:, column] > 50).sum())
        least = max(1, min(floor[name], studies // 25))
        count = min(max(least, round(prevalence[name] * studies), implied), studies)
        truth[_highest(latent[:, column], subject, count), column] = True
        if name == "Normal":
            latent[truth[:, NORMAL]] = -np.inf
    truth[truth[:, NORMAL], :NORMAL] = False
    truth[truth[:, NORMAL], NORMAL + 1 :] = False
    return truth


def _findings_apart(
    latent: np.ndarray, subject: np.ndarray, prevalence: dict[str, float], least: int, seed: int
) -> np.ndarray:
    """Findings bool [S, 45] of the test split, where task 3's share no factor with others and imply none.

    Each is in `least` studies or more. Raises UsageError where that is more than a quarter of the studies.
    """
    studies = len(latent)
    if least * MOST > studies:
        raise UsageError(
            f"--apart {least} asks for {least} test studies of each finding of task 3, and the test split has "
            f"{studies:,} studies: give --images so that it has {least * MOST:,}, or a smaller --apart."
        )
    rng, half = np.random.default_rng([seed, 3]), np.float32(np.sqrt(0.5))
    columns = [ALL_FINDINGS.index(name) for name in TASK3]
    _, person = np.unique(subject, return_inverse=True)
    lasting = rng.standard_normal((person.max() + 1, len(columns)), np.float32)[person]
    latent[:, columns] = half * (lasting + rng.standard_normal((studies, len(columns)), np.float32))
    implies = tuple(pair for pair in IMPLIES if not set(pair) & set(TASK3))
    wanted = prevalence | {name: max(prevalence[name], least / studies) for name in TASK3}
    return _findings(latent, subject, wanted, dict.fromkeys(ALL_FINDINGS, FLOOR["test"]), implies)


def _highest(score: np.ndarray, subject: np.ndarray, count: int) -> np.ndarray:
    """Rows of the `count` highest scores; for few, of different subjects as far as there are enough."""
    if count > RARE:
        return np.argpartition(-score, count - 1)[:count]
    order = np.argsort(-score, kind="stable")[: 50 * count]
    _, first = np.unique(subject[order], return_index=True)
    distinct = np.sort(first)
    others = np.setdiff1d(np.arange(len(order)), distinct)
    return order[np.concatenate([distinct, others])[:count]]


def _with_noise(truth: np.ndarray, train: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels: truth, but in the train rows NOISE of a finding's positives left out and as many made up."""
    labels = truth.copy()
    part = truth[train]
    positives = part.sum(axis=0)
    share = np.where(positives > RARE, NOISE, 0.0)
    share[NORMAL] = 0
    sick = ~part[:, [NORMAL]]
    invented = share * positives / np.maximum(sick.sum() - positives, 1)
    luck = rng.random(part.shape, np.float32)
    labels[train] = np.where(part, luck >= share, sick & (luck < invented))
    return labels


def _mentions(
    truth: np.ndarray, strength: np.ndarray, prevalence: dict[str, float], rng: np.random.Generator
) -> np.ndarray:
    """What each report says: faint signs are hedged, absent common findings often denied, rarely not excluded."""
    luck = rng.random(truth.shape, np.float32)
    hedge = np.where(strength < 0.5, 0.35, 0.05)
    present = np.where(luck < hedge, UNCERTAIN, POSITIVE)
    deny = np.clip(2.5 * np.sqrt([prevalence[name] for name in ALL_FINDINGS]), 0.02, 0.6)
    absent = np.where(luck < deny, NEGATED, SILENT)
    absent = np.where(luck > 0.997, UNCERTAIN, absent)
    mention = np.where(truth, present, absent).astype(np.int8)
    normal = truth[:, NORMAL]
    mention[:, NORMAL] = np.where(normal, POSITIVE, SILENT)
    mention[normal] = np.where(mention[normal] == UNCERTAIN, SILENT, mention[normal])
    return mention


def _leave_out(mention: np.ndarray, truth: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """Make reports silent on a share of the true findings; on Normal they are not."""
    silent = truth & (rng.random(truth.shape, np.float32) < share)
    silent[:, NORMAL] = False
    mention[silent] = SILENT


def _images(sizes: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """The images table of studies of `sizes` images: ids and views with the release's frequencies."""
    study = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(study)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    luck = rng.random((4, len(study)))
    # second images are nearly always lateral, later ones repeat either; frontal PA where a lateral was taken too
    lateral = luck[0] < np.select([place == 0, place == 1], [0.0, 0.905], 0.4)
    walking = np.zeros(len(sizes), bool)
    walking[study[lateral]] = True
    posterior = luck[1] < np.where(walking[study], 0.79, 0.045)
    view = np.where(lateral, np.where(luck[1] < 0.295, "LL", "LATERAL"), np.where(posterior, "PA", "AP")).astype(object)
    rare = luck[2] < RARE_VIEW
    view[rare & ~lateral] = rng.choice([v for v in RARE_VIEWS if v != "XTABLE LATERAL"], (rare & ~lateral).sum())
    view[rare & lateral] = "XTABLE LATERAL"
    view[luck[3] < MISSING_VIEW] = None
    digits = rng.bytes(20 * len(study)).hex()
    ids = [
        f"{d[:8]}-{d[8:16]}-{d[16:24]}-{d[24:32]}-{d[32:]}"
        for d in (digits[i : i + 40] for i in range(0, len(digits), 40))
    ]
    return pd.DataFrame({"dicom_id": ids, "study": study, "view": view, "lateral": lateral})


def _gold(
    table: pd.DataFrame, truth: np.ndarray, split: np.ndarray, images: int, rng: np.random.Generator
) -> np.ndarray:
    """Rows of the task 2 test images: one frontal image of each chosen test study, every finding in it."""
    tests = rng.permutation(np.flatnonzero(split == "test"))
    count = min(len(tests), max(round(images * RELEASE_GOLD / RELEASE_IMAGES), 100))
    chosen: list[int] = []
    # three studies of every finding first, the rarest findings before the common ones
    for name in sorted(TASK2, key=lambda name: PREVALENCE[name]):
        positive = tests[truth[tests, ALL_FINDINGS.index(name)]]
        have = np.isin(positive, chosen)
        chosen += list(positive[~have][: max(0, 3 - int(have.sum()))])
    picked = np.array(list(dict.fromkeys([*chosen, *tests]))[:count])
    order = np.lexsort((table["lateral"].to_numpy(), table["study"].to_numpy()))
    _, first = np.unique(table["study"].to_numpy()[order], return_index=True)
    return np.sort(order[first][picked])
