"""Curves as TensorBoard reads them: `tensorboard --logdir RUN/tensorboard`.

A folder a trial, T0003, and T0003/fold-1 of a further fold. A writer that is opened again begins with the step that
comes next, and TensorBoard forgets what stood there and after: a curve that was cut off by a crash goes on without
doubles.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrlt_ray.storage import Store
from cxrlt_ray.tracking.curves import Point, Setting


class TensorBoard:
    """Writes event files into `store`; into a folder of its own first, where that is no local directory."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._scratch = None if store.local else tempfile.TemporaryDirectory(prefix="cxrlt_ray-tensorboard-")
        self.folder = store.local or Path(self._scratch.name if self._scratch else "")
        self._writers: dict[str, Any] = {}

    def log(self, trial: str, settings: dict[str, Setting], points: Sequence[Point]) -> None:
        """Add epochs to the trial's curves."""
        for point in points:
            path = trial if point.fold == 0 else f"{trial}/fold-{point.fold}"
            writer = self._writer(path, point.step)
            for name, value in point.values.items():
                writer.add_scalar(name, value, point.step)
        self._flush(trial)

    def end(self, trial: str, settings: dict[str, Setting], state: str, score: float | None) -> None:
        """Add the trial's settings with its score, for TensorBoard's table of hyperparameters, and close its files."""
        from torch.utils.tensorboard.summary import hparams

        writer = self._writer(trial, None)
        values = {} if score is None else {"score": score}
        for summary in hparams({**settings, "state": state}, values):
            writer.file_writer.add_summary(summary)
        for name, value in values.items():
            writer.add_scalar(name, value, 0)
        self._close(trial)

    def ensemble(self, name: str, scores: dict[str, float], report: Path | None) -> None:
        """The scores, as scalars of the run ensemble-NAME; a report lies beside the event files, in the run."""
        path = f"ensemble-{name}"
        if (earlier := self.store / path).exists(""):
            earlier.remove()
        writer = self._writer(path, 0)
        for tag, value in scores.items():
            writer.add_scalar(tag, value, 0)
        self._close(path)

    def close(self) -> None:
        """Close all files."""
        for path in [path for path in self._writers if "/" not in path]:
            self._close(path)
        if self._scratch:
            self._scratch.cleanup()

    def _writer(self, path: str, purge_step: int | None) -> Any:
        if path not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[path] = SummaryWriter(str(self.folder / path), purge_step=purge_step)
        return self._writers[path]

    def _below(self, path: str) -> list[str]:
        """The writers of a trial and its folds."""
        return [name for name in self._writers if name.split("/")[0] == path]

    def _flush(self, path: str) -> None:
        for name in self._below(path):
            self._writers[name].flush()
        if self.store.local is None:
            for file in (self.folder / path).rglob("events.*"):
                self.store.write(file.relative_to(self.folder).as_posix(), file.read_bytes())

    def _close(self, path: str) -> None:
        self._flush(path)
        for name in self._below(path):
            self._writers.pop(name).close()
