"""Which images make up which batch: the order of an epoch, its steps, and pieces of a batch. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np


def units(study: int | np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """What a batch is counted in: images, or whole studies.

    study: the number of images n, or the code of each image's study [n]. Returns each unit's first image [U], units in
    the order of those, and a function from units to all of their images.
    """
    if not isinstance(study, np.ndarray):
        return np.arange(study), lambda chosen: chosen
    codes = np.unique(study, return_inverse=True)[1]
    by_study = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[by_study], prepend=-1))
    members = np.split(by_study, starts[1:])
    in_order = np.argsort([images[0] for images in members], kind="stable")
    members = [members[k] for k in in_order]
    empty = np.empty(0, np.int64)
    first = by_study[starts][in_order]
    return first, lambda chosen: np.concatenate([members[k] for k in chosen]) if len(chosen) else empty


def order(file: np.ndarray, seed: list[int] | None, window: int = 0) -> np.ndarray:
    """In what order to take images [N]; `file` [N] says in which shard each lies.

    Without a seed in the order of storage. With one, a uniform permutation; or, of more than `window` shards (0: of any
    number), shards are permuted and an image comes up to `window` shards after its shard: about that many are open at a
    time.
    """
    if seed is None:
        return np.arange(len(file))
    rng = np.random.default_rng(seed)
    names, dense = np.unique(file, return_inverse=True) if window else (file[:0], file)
    if len(names) <= window:
        return rng.permutation(len(file))
    turn = rng.permutation(len(names))
    return np.argsort(turn[dense] + window * rng.random(len(file)), kind="stable")


def steps(images: int, batch_size: int, world: int = 1) -> list[list[slice]]:
    """For every step of `batch_size` images, each rank's slice of an epoch's order: all once, no rank without any.

    A remainder that would leave a rank with fewer than two images (one alone breaks batch norm) joins the step before.
    """
    if not images:
        return []
    edges = list(range(0, images, batch_size))
    if len(edges) > 1 and images - edges[-1] < min(2 * world, batch_size):
        edges.pop()
    shares = []
    for first, last in zip(edges, [*edges[1:], images], strict=True):
        cuts = [first + (last - first) * r // world for r in range(world + 1)]
        shares.append([slice(a, b) for a, b in pairwise(cuts)])
    return shares


def pieces(images: int, size: int, study: np.ndarray | None = None) -> list[slice]:
    """Slices of at most `size` images; with `study` [n] they end where studies do, and may be larger for one study.

    A last one of a single image joins the one before, as in `steps`: alone it breaks batch norm. Of size 1 all are.
    """
    ends = range(1, images + 1) if study is None else [*(np.flatnonzero(np.diff(study)) + 1).tolist(), images]
    cuts = [0]
    for end, following in pairwise([*ends, images + size + 1]):
        if following - cuts[-1] > size:
            cuts.append(end)
    if len(cuts) > 2 and cuts[-1] - cuts[-2] == 1 and size > 1:
        del cuts[-2]
    return [slice(a, b) for a, b in pairwise(cuts)]
