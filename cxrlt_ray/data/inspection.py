"""Every original decoded once, without shards: what cannot be, what is suspect, and what is there twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pandas as pd

from cxrlt_ray import cli
from cxrlt_ray.cluster.processors import available_processors
from cxrlt_ray.data.decode import decode
from cxrlt_ray.data.duplicates import near_pairs, perceptual_hash
from cxrlt_ray.data.manifest import SPLITS, Manifest
from cxrlt_ray.data.originals import check_originals, read_original
from cxrlt_ray.data.shards import inverted
from cxrlt_ray.data.suspects import BLANK, suspect
from cxrlt_ray.errors import CxrltError

EDGE = 128  # pixels to decode for: thumbnails need no more
AT_ONCE = 256  # images in the threads' queue
MISSING = "missing"  # the reason where there is no file


def inspect_images(manifest: Manifest, sample: int = 0, say: Callable[[str], None] = cli.say) -> pd.DataFrame:
    """Decode `sample` random images, 0: all, by a thread a CPU, with lines of progress.

    Returns a row an image, indexed as `manifest.table`: reason (why it cannot be decoded; MISSING; ''), suspect (one of
    SUSPECTS or ''), hash (uint8 [32], or None).
    """
    import cv2

    check_originals(manifest)
    table = manifest.table.assign(inverted=inverted(manifest.table))
    if sample:
        table = table.sample(min(sample, len(table)), random_state=0).sort_index()
    threads, log_level = cv2.getNumThreads(), cv2.utils.logging.setLogLevel(0)  # our line says it
    cv2.setNumThreads(1)  # an image has one CPU
    try:
        results = cli.with_progress(_results(manifest.root, table), len(table), say)
        return pd.DataFrame(list(results), table.index, ["reason", "suspect", "hash"])
    finally:
        cv2.setNumThreads(threads)
        cv2.utils.logging.setLogLevel(log_level)


def pairs_across_splits(manifest: Manifest, images: pd.DataFrame) -> dict[tuple[str, str], np.ndarray]:
    """Near-duplicates in different splits: (split, split) -> pairs of the manifest's index, int [K, 2].

    images: as `inspect_images` returns them. Blank images are left out.
    """
    usable = images[images["hash"].notna() & ~images["suspect"].isin(BLANK)]
    splits = manifest.table["split"].reindex(usable.index)
    parts = {name: usable.index[(splits == name).to_numpy(bool)].to_numpy() for name in SPLITS}
    hashes = {name: np.stack(usable.loc[rows, "hash"].tolist()) for name, rows in parts.items() if len(rows)}
    pairs = {}
    for first, second in combinations(hashes, 2):
        near = near_pairs(hashes[first], hashes[second])
        pairs[first, second] = np.column_stack([parts[first][near[:, 0]], parts[second][near[:, 1]]])
    return pairs


def _results(root: str, table: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray | None]]:
    """`_inspect` of each row in order."""
    with ThreadPoolExecutor(available_processors()) as pool:
        for start in range(0, len(table), AT_ONCE):
            part = table.iloc[start : start + AT_ONCE]
            yield from pool.map(_inspect, [root] * len(part), part["path"], part["inverted"])


def _inspect(root: str, path: str, invert: bool) -> tuple[str, str, np.ndarray | None]:
    """Reason, suspect and hash of one image."""
    import cv2

    try:
        image, _ = decode(read_original(root, path), EDGE, invert)
        return "", suspect(image), perceptual_hash(image)
    except CxrltError:
        return MISSING, "", None
    except (ValueError, cv2.error) as error:
        return str(error), "", None
