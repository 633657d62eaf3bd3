"""The trackers there are."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.store import Run
from cxrlt_ray.tracking.curves import Point, Setting


class Tracker(Protocol):
    """Where curves go. Any fault may be raised: who calls ends the tracker then, and nothing else."""

    def log(self, trial: str, settings: dict[str, Setting], points: Sequence[Point]) -> None:
        """Epochs of a trial, in order, that were not given before."""

    def end(self, trial: str, settings: dict[str, Setting], state: str, score: float | None) -> None:
        """A trial has ended."""

    def ensemble(self, name: str, scores: dict[str, float], report: Path | None) -> None:
        """The scores of an ensemble, and the run's report page where there is one."""

    def close(self) -> None:
        """Nothing more comes."""


TRACKERS = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}  # by the name of the package


def parse_trackers(text: str) -> tuple[str, ...]:
    """'tensorboard,wandb' as names. Raises UsageError for one that there is not, or whose package is missing."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in names if name not in TRACKERS]
    if unknown or not names:
        raise UsageError(f"--log-with is {', '.join(TRACKERS)} or both, joined by a comma; not '{text}'.")
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--log-with {name} needs the extra `track`: pip install 'cxrlt-ray[track]'.")
    return names


def check_trackers(names: Sequence[str]) -> None:
    """Raise UsageError where a tracker asks for what is not there."""
    if "wandb" in names:
        from cxrlt_ray.tracking.wandb import check_login

        check_login()


def open_tracker(name: str, run: Run) -> Tracker:
    """The tracker of that name, for a run."""
    if name == "tensorboard":
        from cxrlt_ray.tracking.tensorboard import TensorBoard

        return TensorBoard(run.store / "tensorboard")
    from cxrlt_ray.tracking.wandb import Wandb

    return Wandb(run.name, run.store.absolute().local)
