"""Whose images a model has been trained on, kept as salted hashes: to be compared with, not to be read.

A subject is known by its release and its id there, so that two directories of one release agree; ids of plain tables
mean something below their own directory only. An image is known by the size and the checksum of its original file, so
that a copy under any name is recognised; one that was resized or recompressed is not. A hash has 48 bits: of 900,000
images against 400,000 others about 0.001 agree by chance. The salt keeps hashes of two files from being joined; it is
no secret, and who can list all ids of a release can test each of them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from cxrlt_ray.config import Config
from cxrlt_ray.data.file_states import ABSENT, CHECKSUM
from cxrlt_ray.data.joining import PHANTOM
from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.data.mapping import load_mapping
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import PHANTOM_MARKER
from cxrlt_ray.storage import Store

BYTES = 6  # of a hash
# whose patients a reader's ids are: MIMIC-CXR's in three releases, PadChest's in two
RELEASES = {
    "mimic": "mimic",
    "cxrlt2023": "mimic",
    "cxrlt2024": "mimic",
    "padchest": "padchest",
    "cxrlt2026": "padchest",
}
PLAIN = ("table", "images")  # readers of directories whose ids anyone may have given


class HashedSet(Config):
    """A set of keys that can be asked, not listed: sorted hashes of BYTES bytes, in base64, and their salt."""

    salt: str
    hashes: str = ""

    @classmethod
    def of(cls, keys: Iterable[str], salt: str) -> HashedSet:
        """The set of `keys`."""
        content = np.unique(_hashes(keys, salt)).astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - BYTES :]
        return cls(salt=salt, hashes=base64.b64encode(content.tobytes()).decode())

    def __len__(self) -> int:
        return len(base64.b64decode(self.hashes)) // BYTES

    def holds(self, keys: Iterable[str]) -> np.ndarray:
        """Which of N keys are in the set: bool [N]."""
        content = np.frombuffer(base64.b64decode(self.hashes), np.uint8).reshape(-1, BYTES)
        padded = np.zeros((len(content), 8), np.uint8)
        padded[:, 8 - BYTES :] = content
        return np.isin(_hashes(keys, self.salt), padded.view(">u8").ravel())


def _hashes(keys: Iterable[str], salt: str) -> np.ndarray:
    """uint64 [N], of which the last 8 * BYTES bits are used."""
    key = salt.encode()
    digests = [hashlib.blake2b(text.encode(), digest_size=BYTES, key=key).digest() for text in keys]
    return np.array([int.from_bytes(digest) for digest in digests], np.uint64)


def release_of(reader: str, data: str) -> str:
    """What subjects' ids in `data`, read as `reader`, are unique within."""
    if reader in PLAIN or Store(data).exists(PHANTOM_MARKER):
        return f"{reader} {Store(data).absolute().uri}"
    return RELEASES.get(reader, reader)


def subject_keys(release: str, subjects: Iterable[str]) -> list[str]:
    """A key for each subject id."""
    return [f"{release}/{subject}" for subject in subjects]


def keys_of_subjects(manifest: Manifest, data: str, cohorts: Mapping[str, str]) -> np.ndarray:
    """The key of the subject of each image of a joined manifest, str [N]: the same in whichever cohort a person is.

    data, cohorts: the directories of the main data and, by mapping, of the others. A cohort whose mapping is gone keeps
    its ids.
    """
    releases = {MAIN: release_of(manifest.source, data)}
    for key, path in cohorts.items():
        try:
            mapping = load_mapping(key)
        except CxrltError:
            continue
        releases[mapping.name] = release_of(mapping.reader, path.removeprefix(PHANTOM))
    return keys_within(manifest, releases)


def keys_within(manifest: Manifest, releases: Mapping[str, str]) -> np.ndarray:
    """The key of the subject of each image, str [N]. releases: by cohort; ids of one without it stay as they are."""
    ids, cohorts = manifest.table["subject_id"].astype(str), manifest.cohorts
    keys = ids.to_numpy(object).copy()
    for cohort, release in releases.items():
        rows = (cohorts == cohort).to_numpy()
        keys[rows] = subject_keys(release, ids[rows].str.removeprefix(f"{cohort}/"))  # the main cohort's have no prefix
    return keys


def image_keys(shards: Shards, image_id: Iterable[str]) -> list[str]:
    """A key for each image: its original's size and checksum; "" for one that was not prepared or not read."""
    index = shards.index()
    rows = index.reindex(pd.Index(list(image_id)))
    known = rows["bytes"].notna() & (rows[CHECKSUM] != ABSENT)
    sizes, sums = rows["bytes"].fillna(0).astype("int64"), rows[CHECKSUM].fillna(0).astype("int64")
    return [f"{size} {checksum}" if ok else "" for size, checksum, ok in zip(sizes, sums, known, strict=True)]
