"""Originals to shards, made once with Ray Data and reused.

Originals are opened read-only and decoded once for all sizes. A shard is SHARD_ROWS images squashed to SIZE x SIZE (as
CXR-LT's winners do) with area interpolation; a killed run redoes only the shards in flight. Originals whose size or
time has changed are prepared anew, with the rest of their shard; `checksum` compares contents instead. The directory is
its maker's alone (mode 700), and files outside of the data's root, by a path or by a link, are not read.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxrlt_ray import cli
from cxrlt_ray.cluster.start import data_context
from cxrlt_ray.data.decode import decode, resize
from cxrlt_ray.data.duplicates import HASH, perceptual_hash
from cxrlt_ray.data.estimate import SAMPLE, estimate
from cxrlt_ray.data.file_states import ABSENT, CHECKSUM, STATE, checksum_of, file_states
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.originals import check_originals, read_original
from cxrlt_ray.data.shards import (
    INDEX,
    MAX_BAD,
    QUALITY,
    QUARANTINE,
    SUMMARY,
    Shards,
    Summary,
    check_max_bad,
    encode,
    forget_indexes,
    inverted,
    pack,
    quality_name,
    shards_store,
)
from cxrlt_ray.data.suspects import BLANK, suspect
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.privacy import private_dir
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.messages import explained

SHARD_ROWS = 256
UNKNOWN = -2  # of an original's size, time and checksum: no file has it, nor one that is not there (ABSENT)
OF_IMAGES = ("image_id", "path", "inverted", "synthetic")  # lists of a Chunk
Say = Callable[[str], None]
# file: the shard's name; image_id, path, inverted, synthetic: lists, an image each; states: their STATE
Chunk = dict[str, Any]


def prepare(
    manifest: Manifest,
    storage: str,
    sizes: Sequence[int],
    max_bad: float = MAX_BAD,
    quality: int = QUALITY,
    say: Say = print,
    checksum: bool = False,
) -> tuple[Shards, ...]:
    """The shards of `manifest` at each of `sizes`, by size; those that do not exist yet are made in one decode.

    checksum: an original is unchanged where its content is, whatever its time; all of them are read for that. Raises
    CxrltError when more than the share `max_bad` of the images cannot be decoded, or when the disk will not hold them;
    UsageError where that is no share.
    """
    check_max_bad(max_bad)
    check_originals(manifest)
    stores = {size: shards_store(manifest, storage, size, quality) for size in sorted(set(sizes))}
    states = file_states(manifest.root, manifest.table["path"].tolist(), checksum)
    known = {size: _recorded(store, manifest) for size, store in stores.items() if store.exists(SUMMARY)}
    before = next(iter(known.values()), None)
    chunks = list(_chunks(manifest, states, before))
    names = {chunk["file"] for chunk in chunks}
    current = {size for size, table in known.items() if table[STATE].equals(states[STATE])}
    incomplete = {
        size: store for size, store in stores.items() if size not in current or not names <= set(store.list())
    }
    if before is not None and (changed := int((~_unchanged(before, states)).sum())):
        say(f"{changed:,} of {len(states):,} images have changed since they were prepared: they are prepared anew")
    if incomplete:
        _write_shards(manifest, chunks, incomplete, quality, say)
    prepared = tuple(Shards(store, size, store.read_json(SUMMARY)) for size, store in stores.items())
    for shards in prepared:
        bad, total = shards.summary["quarantined"], shards.summary["images"]
        if bad > max_bad * total:
            for store in stores.values():
                _forget(store)
            raise CxrltError(
                f"{bad} of {total} images cannot be decoded, more than the allowed share {max_bad:g}; "
                f"{shards.store.uri}/{QUARANTINE} says which and why. Mend them, or allow more with --max-bad."
            )
    return prepared


def _recorded(store: Store, manifest: Manifest) -> pd.DataFrame:
    """What whole shards were made of: file, STATE and CHECKSUM of each of the manifest's images, by its row.

    An image that is in both tables or in neither, as one of them could not be written anew, counts as changed.
    """
    tables = [_read_columns(store, name, ["image_id", "file", *STATE, CHECKSUM]) for name in (INDEX, QUARANTINE)]
    table = pd.concat([part for part in tables if len(part)]).set_index("image_id")
    table = table[~table.index.duplicated(keep=False)]
    of_images = table.reindex(manifest.table["image_id"]).reset_index(drop=True)
    states = [*STATE, CHECKSUM]
    return of_images.fillna(dict.fromkeys(states, UNKNOWN)).astype(dict.fromkeys(states, "int64"))


def _unchanged(known: pd.DataFrame, states: pd.DataFrame) -> np.ndarray:
    """Which originals are as they were prepared, bool [N]: by their contents where these were compared."""
    by = [CHECKSUM] if CHECKSUM in states else STATE
    return (known[by].to_numpy() == states[by].to_numpy()).all(axis=1)


def _write_shards(manifest: Manifest, chunks: list[Chunk], stores: dict[int, Store], quality: int, say: Say) -> None:
    for store in stores.values():
        if store.local is not None:
            private_dir(store.local)
    existing = set.intersection(*(set(store.list()) for store in stores.values()))
    missing = [chunk for chunk in chunks if chunk["file"] not in existing]
    images, to_do = len(manifest.table), sum(len(chunk["image_id"]) for chunk in missing)
    edges, started = ", ".join(f"{size}" for size in stores), time.monotonic()
    if missing:
        say(f"Preparing {to_do:,} images at {edges} px from {manifest.root} (once; later runs reuse the shards)")
        _run_tasks(manifest, missing, stores, quality, say)
    seconds = time.monotonic() - started
    for size, store in stores.items():
        summary = _close(store, chunks, size, quality, seconds)
    say(f"  {images:,} images prepared, {to_do / max(seconds, 1e-9):,.0f} images/s; {quarantine_text(summary)}")


def _run_tasks(manifest: Manifest, chunks: list[Chunk], stores: dict[int, Store], quality: int, say: Say) -> None:
    """Make the shards of `chunks` by Ray Data tasks, after a line with their cost, with lines of progress."""
    import ray

    to_do = sum(len(chunk["image_id"]) for chunk in chunks)
    cpus = ray.cluster_resources().get("CPU", 1)
    _report_estimate(manifest, stores, quality, cpus, to_do / len(manifest.table), say)
    data_context()
    to_make = [{key: chunk[key] for key in ("file", *OF_IMAGES)} for chunk in chunks]
    dataset = ray.data.from_items(to_make, override_num_blocks=len(chunks)).map(
        _write_shard,  # type: ignore[arg-type]
        fn_kwargs={"stores": stores, "root": manifest.root, "quality": quality},
    )
    for _ in cli.with_progress(dataset.iter_rows(), to_do, say, lambda row: int(row["images"])):
        pass


def _close(store: Store, chunks: list[Chunk], size: int, quality: int, seconds: float) -> Summary:
    """Write index, quarantine and, last, the summary of shards that all exist."""
    # not the pixels: 40 GB
    columns = ["image_id", "path", "reason", "converted", "suspect", "offset", "length", CHECKSUM, HASH]
    frames = [_read_columns(store, chunk["file"], columns) for chunk in chunks]
    for chunk, frame in zip(chunks, frames, strict=True):
        frame["file"] = chunk["file"]
        frame[STATE] = chunk["states"]
    table = pd.concat(frames, ignore_index=True)
    good, state = table["reason"] == "", [*STATE, CHECKSUM]
    _remove_superseded(store, set(table["file"]))
    _write_parquet(store, INDEX, table.loc[good, ["image_id", "file", "offset", "length", *state, HASH]])
    _write_parquet(store, QUARANTINE, table.loc[~good, ["image_id", "path", "reason", "file", *state]])
    summary: Summary = {
        "images": len(table),
        "quarantined": int((~good).sum()),
        "converted": _counts(table["converted"]),
        "suspect": _counts(table["suspect"]),
        "size": size,
        "quality": quality_name(quality),
        "bytes": int(table["length"].sum()),
        "seconds": round(seconds, 1),
    }
    if synthetic := sum(sum(chunk["synthetic"]) for chunk in chunks):
        summary["synthetic"] = synthetic
    store.write_json(SUMMARY, summary)
    forget_indexes()
    return summary


def _remove_superseded(store: Store, current: set[str]) -> None:
    """Delete shards that neither `current` nor the index still names: a sweep may be reading the latter."""
    names = set(store.list())
    indexed = set(_read_columns(store, INDEX, ["file"])["file"]) if INDEX in names else set()
    for name in names - current - indexed - {INDEX, QUARANTINE}:
        if name.endswith(".parquet"):
            store.delete(name)


def _counts(kinds: pd.Series) -> dict[str, int]:
    return {str(kind): int(count) for kind, count in kinds.value_counts().items() if kind}


def _report_estimate(
    manifest: Manifest, stores: dict[int, Store], quality: int, cpus: float, share: float, say: Say
) -> None:
    """Print what the `share` of the images will cost; raise CxrltError where the disk will not hold the shards."""
    costs = estimate(manifest, list(stores), [quality])
    if costs is None:
        return
    size = share * sum(kind[0] for kind in costs.kinds.values())
    say(
        f"  about {cli.size(size)} at {quality_name(quality)} from {cli.size(share * costs.original_bytes)}, "
        f"{cli.duration(share * costs.seconds(cpus))} on {cpus:g} CPU (from {min(SAMPLE, costs.images)} images)"
    )
    store = next(iter(stores.values()))
    free = store.free()
    if store.local is not None and free is not None and size > free:
        raise CxrltError(
            f"the shards need about {cli.size(size)} and {store.local.parent} has {cli.size(free)} free: give "
            "--storage a larger disk, fewer or smaller --sizes, or a lower --quality."
        )


def _read_columns(store: Store, name: str, columns: list[str]) -> pd.DataFrame:
    """Columns of a file, without fetching the others, which are the pixels; null where it has none of the name, as of
    images prepared before there were hashes.
    """
    import pyarrow.parquet as pq

    filesystem, path = store.opened(name)
    with explained(f"{store.uri}/{name} cannot be read"), filesystem.open_input_file(path) as source:
        file = pq.ParquetFile(source)
        known = [column for column in columns if column in file.schema_arrow.names]
        return file.read(known).to_pandas().reindex(columns=columns)


def _forget(store: Store) -> None:
    """Shards with images in quarantine are made anew the next time, as their originals may be mended."""
    bad = set(pd.read_parquet(io.BytesIO(store.read(QUARANTINE)))["image_id"])
    for name in store.list():
        is_shard = name.endswith(".parquet") and "-" in name
        if is_shard and bad & set(_read_columns(store, name, ["image_id"])["image_id"]):
            store.delete(name)
    store.delete(SUMMARY)


def quarantine_text(summary: Summary) -> str:
    """'2 in quarantine, 3 inverted converted, 1 suspect (1 black)': a summary's counts for a line of output."""
    text = f"{summary['quarantined']} in quarantine"
    text += "".join(f", {count} {kind} converted" for kind, count in summary["converted"].items())
    if suspects := summary.get("suspect"):
        kinds = ", ".join(f"{count} {kind}" for kind, count in suspects.items())
        text += f", {sum(suspects.values())} suspect ({kinds}; python -m cxrlt_ray.cohort DIR --images says which)"
    return text


def _chunks(manifest: Manifest, states: pd.DataFrame, known: pd.DataFrame | None) -> Iterator[Chunk]:
    """The images of each shard; one whose originals are all as they were keeps its name. known: as of `_recorded`."""
    unchanged = np.zeros(len(states), bool) if known is None else _unchanged(known, states)
    marks = {"inverted": inverted(manifest.table), "synthetic": manifest.generated}
    for split, rows in manifest.table.assign(**marks).groupby("split", sort=True):
        # neighbours in a release are of one subject: shards mix them, so that a window of shards does too
        rows = rows.sample(frac=1, random_state=0)
        for k in range(0, len(rows), SHARD_ROWS):
            part = rows.iloc[k : k + SHARD_ROWS]
            state = states.loc[part.index, STATE].to_numpy()
            name = f"{split}-{k // SHARD_ROWS:05d}-{hashlib.sha256(state.tobytes()).hexdigest()[:8]}.parquet"
            if known is not None and unchanged[part.index].all():
                name = str(known["file"].iloc[part.index[0]])
            of_images = {key: part[key].tolist() for key in OF_IMAGES}
            yield {"file": name, "states": state, **of_images}


def _write_shard(chunk: Chunk, stores: dict[int, Store], root: str, quality: int) -> dict[str, Any]:
    import cv2

    cv2.setNumThreads(1)  # a task has one CPU
    rows: dict[int, list[dict[str, Any]]] = {size: [] for size in stores}
    for image_id, path, invert, synthetic in zip(*(chunk[key] for key in OF_IMAGES), strict=True):
        row = {"image_id": image_id, "path": path, "reason": "", "converted": "", "suspect": "", CHECKSUM: ABSENT}
        row |= {"synthetic": synthetic, HASH: None}
        images = dict.fromkeys(stores, b"")
        try:
            content = read_original(root, path)
            row[CHECKSUM] = checksum_of(content)
            image, row["converted"] = decode(content, max(stores), invert)
            row["suspect"] = suspect(image)
            sized = {size: resize(image, size) for size in stores}
            images = {size: encode(image, quality) for size, image in sized.items()}
            if row["suspect"] not in BLANK:
                row[HASH] = perceptual_hash(sized[max(stores)]).tobytes()
        except CxrltError:
            row["reason"] = "cannot be read (not on disk?)"
        except (ValueError, cv2.error) as error:
            row["reason"] = str(error)
        for size in stores:
            rows[size].append({"image": images[size], **row})
    for size, store in stores.items():
        store.write(chunk["file"], pack(pd.DataFrame(rows[size])))
    return {"file": chunk["file"], "images": len(chunk["image_id"])}


def _write_parquet(store: Store, name: str, frame: pd.DataFrame) -> None:
    with store.place(name) as path:
        frame.to_parquet(path, index=False)
