"""What a run's manifest and shards tell of the data: drift of prevalence, images that stand in two splits, examples."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from cxrlt_ray.data.duplicates import HASH, near_pairs
from cxrlt_ray.data.file_states import CHECKSUM, STATE
from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.data.shards import INDEX, Shards, decoded
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.page.pictures import data_uri, smaller
from cxrlt_ray.page.records import Interval

LEVEL = 0.95
COMPARED = 100_000_000  # pairs of hashes of two splits at most: a second or two on a core


def prevalence(targets: np.ndarray, subjects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of positives [C] among labelled images, and its standard error with subjects as clusters.

    targets: int8 [N, C], 1, 0 or -1. The error is that of a ratio of cluster totals, p = sum y / sum n: the root of
    S / (S - 1) sum_s (y_s - p n_s)^2 / (sum n)^2 (Cochran 1977, Sampling Techniques, 6.4), S subjects. nan where it is
    not known: of no labelled image, or one subject.
    """
    known = targets >= 0
    _, subject = np.unique(subjects.astype(str), return_inverse=True)
    count = int(subject.max()) + 1 if len(subject) else 0
    positive, labelled = np.zeros((count, targets.shape[1])), np.zeros((count, targets.shape[1]))
    np.add.at(positive, subject, (targets == 1).astype(float))
    np.add.at(labelled, subject, known.astype(float))
    total = labelled.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = positive.sum(axis=0) / np.where(total > 0, total, np.nan)
        squares = ((positive - share * labelled) ** 2).sum(axis=0)
        error = np.sqrt(squares * count / (count - 1)) / total if count > 1 else np.full(targets.shape[1], np.nan)
    return share, error


def difference(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], comparisons: int
) -> tuple[list[Interval], list[bool]]:
    """Second less first prevalence with 95 % intervals [C], and which differ after Bonferroni's correction."""
    from scipy.stats import norm

    wide, wider = norm.ppf((1 + LEVEL) / 2), norm.ppf(1 - (1 - LEVEL) / 2 / max(comparisons, 1))
    intervals, drifts = [], []
    for p, e, q, f in zip(*one, *other, strict=True):
        gap, error = float(q - p), math.hypot(float(e), float(f))
        if math.isnan(gap):
            intervals.append(Interval())
        elif math.isnan(error) or error == 0:
            intervals.append(Interval(value=gap))
        else:
            intervals.append(Interval(value=gap, low=gap - wide * error, high=gap + wide * error))
        drifts.append(error > 0 and abs(gap) > wider * error)
    return intervals, drifts


def indexed(manifest: Manifest, shards: Shards) -> pd.DataFrame | None:
    """The main cohort's prepared images: split, and what shards know of the original; None where that is not there."""
    try:
        index = pd.read_parquet(io.BytesIO(shards.store.read(INDEX)))
    except (CxrltError, OSError, ValueError):
        return None
    own = manifest.of_cohort(MAIN).table[["image_id", "split"]]
    known = [name for name in (STATE[0], CHECKSUM, HASH) if name in index]
    return own.merge(index[["image_id", *known]], on="image_id")


def identical_files(images: pd.DataFrame) -> dict[str, int] | None:
    """How many files stand, byte for byte, in both of two splits, by "train and test"; None where it is not known.

    images: as of `indexed`. By size and checksum of the originals, which shards keep since their version of 2026-11.
    """
    if CHECKSUM not in images or STATE[0] not in images:
        return None
    splits = {s: set(zip(part[STATE[0]], part[CHECKSUM], strict=True)) for s, part in images.groupby("split")}
    return {f"{a} and {b}": len(splits[a] & splits[b]) for a, b in combinations(sorted(splits), 2)}


@dataclass(frozen=True)
class Alike:
    """Of the smaller of two splits: its images that were compared, and those with a near-duplicate in the other."""

    compared: int
    found: int


def near_duplicates(images: pd.DataFrame, most: int = COMPARED) -> dict[str, Alike] | None:
    """Images of two splits whose perceptual hashes nearly agree (data/duplicates.py), by "train and test".

    images: as of `indexed`. Where there would be more than `most` pairs to compare, images of the smaller split are
    taken evenly. None where the shards have no hashes: those made before 2026-12.
    """
    if HASH not in images or not images[HASH].notna().any():
        return None
    splits = {
        name: np.frombuffer(b"".join(part[HASH]), np.uint8).reshape(len(part), -1)
        for name, part in images[images[HASH].notna()].groupby("split")
    }
    alike = {}
    for pair in combinations(sorted(splits), 2):
        few, many = sorted((splits[name] for name in pair), key=len)
        rows = np.linspace(0, len(few) - 1, max(1, min(len(few), most // len(many)))).astype(int)
        found = np.unique(near_pairs(few[rows], many)[:, 0]).size
        alike[" and ".join(pair)] = Alike(len(rows), found)
    return alike


def example_images(manifest: Manifest, shards: Shards, findings: tuple[str, ...], most: int = 12) -> dict[str, str]:
    """A training image with each of the `most` frequent findings, small, as data URIs."""
    train = manifest.of_cohort(MAIN).of_split("train")
    targets = train.targets(findings)
    order = np.argsort(-(targets == 1).sum(axis=0), kind="stable")[:most]
    index = shards.index()
    examples: dict[str, str] = {}
    for c in order:
        ids = [i for i in train.table.loc[targets[:, c] == 1, "image_id"] if i in index.index]
        if ids:
            place = index.loc[ids[len(ids) // 2]]
            content = shards.store.read(str(place["file"]))[place["offset"] : place["offset"] + place["length"]]
            examples[findings[c]] = data_uri(smaller(decoded(content)))
    return examples
