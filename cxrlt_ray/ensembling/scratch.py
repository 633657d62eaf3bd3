"""Members' scores in a scratch file, a finding's together: [C, M, N] in float32, however many members there are.

Members come one at a time with all findings, selection takes one finding with all members: a transpose, made on disk
with a block of members in memory. 2,000 members of 39,293 images and 40 findings take 12.6 GB.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

BLOCK = 1 << 27  # bytes of members that are in memory until they are written


class ScratchScores:
    """Scores of up to `members` members: `add` one after the other, then `finding`. Made by `scratch_scores`."""

    def __init__(self, path: str, members: int, images: int, findings: int) -> None:
        self.path, self.shape, self.added = path, (findings, members, images), 0
        held = max(1, min(members, BLOCK // (4 * images * findings)))
        self._block, self._filled = np.empty((findings, held, images), np.float32), 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def add(self, scores: np.ndarray) -> None:
        """The next member's scores [N, C]."""
        self._block[:, self._filled] = scores.T
        self._filled += 1
        if self._filled == self._block.shape[1]:
            self._flush()

    def _flush(self) -> None:
        _, members, images = self.shape
        for c, part in enumerate(self._block[:, : self._filled]):
            _write(self._file, memoryview(part).cast("B"), 4 * images * (c * members + self.added))
        self.added, self._filled = self.added + self._filled, 0

    def finding(self, c: int) -> np.ndarray:
        """The scores of finding c by all members that were added, float32 [M, N], mapped into memory."""
        if self._filled:
            self._flush()
        _, members, images = self.shape
        start = 4 * images * members * c
        return np.asarray(np.memmap(self.path, np.float32, "r", start, (self.added, images)))

    def close(self) -> None:
        """No more is added."""
        os.close(self._file)


def _write(file: int, content: memoryview, offset: int) -> None:
    """Write all of it: one call writes 2 GiB at most, and less where it is interrupted."""
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


@contextmanager
def scratch_scores(members: int, images: int, findings: int) -> Iterator[ScratchScores]:
    """A scratch file in the folder of temporary files (TMPDIR), removed in the end. Raises OSError of a full disk."""
    with tempfile.TemporaryDirectory(prefix="cxrlt_ray-") as folder:
        scores = ScratchScores(f"{folder}/scores", members, images, findings)
        try:
            yield scores
        finally:
            scores.close()


def has_room(members: int, images: int, findings: int) -> bool:
    """Whether the folder of temporary files has room for them, and a tenth to spare."""
    return shutil.disk_usage(tempfile.gettempdir()).free > 1.1 * 4 * members * images * findings
