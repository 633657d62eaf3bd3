"""Findings shared among threads: compiled code frees the interpreter's lock. The number of threads is numba's."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numba
import numpy as np

from cxrlt_ray.selection.finding import Finding

SMALL = 500_000  # fewer scores than this are not worth waking threads for
Item = TypeVar("Item")


def by_work(targets: np.ndarray) -> list[int]:
    """Findings of targets [N, C] that have positives, the most work first."""
    positives = (targets == 1).sum(axis=0)
    return [int(c) for c in np.argsort(-positives, kind="stable") if positives[c]]


def for_each(
    work: Callable[[Item], None],
    items: Sequence[Item],
    scores: int,
    report: Callable[[float], None] = lambda share: None,
) -> None:
    """Do `work` for every item, in threads where the number of scores is worth it. report: takes the share done."""
    threads = numba.get_num_threads()
    alone = threads == 1 or scores < SMALL
    ends = map(work, items) if alone else _pool(os.getpid(), threads).map(work, items)
    for k, _ in enumerate(ends, start=1):
        report(k / len(items))


def in_shares(
    work: Callable[..., None], findings: Sequence[Finding], some: np.ndarray, scores: int, *arguments: object
) -> None:
    """Do compiled `work(findings, some, *arguments)`, each thread for its share of `some`, the findings' indices."""
    threads = numba.get_num_threads()
    if threads == 1 or scores < SMALL:
        work(findings, some, *arguments)
    else:
        shares = [some[start::threads] for start in range(threads)]
        list(_pool(os.getpid(), threads).map(lambda share: work(findings, share, *arguments), shares))


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that are started once; a forked process starts its own."""
    return ThreadPoolExecutor(threads)
