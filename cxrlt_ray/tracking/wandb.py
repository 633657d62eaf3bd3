"""Curves in Weights & Biases: a run a trial, in one group a sweep, online or offline as WANDB_MODE says.

What its client would send of the machine by itself (command line, code, git, host, console) is turned off: a command
line names the data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrlt_ray.errors import UsageError
from cxrlt_ray.tracking.curves import Point, Setting

PROJECT = "cxrlt-ray"  # unless WANDB_PROJECT names another
LOCAL = ("offline", "dryrun", "disabled")
PICTURE = b"data:image/"  # in a page


def check_login() -> None:
    """Raise UsageError where runs would be sent and nobody is logged in: a sweep cannot answer a prompt."""
    if os.environ.get("WANDB_MODE") in LOCAL:
        return
    import wandb

    if not wandb.api.api_key:
        raise UsageError(
            "--log-with wandb: nobody is logged in to Weights & Biases. `wandb login` does so; WANDB_MODE=offline "
            "keeps the curves in the run's folder."
        )


class Wandb:
    """Weights & Biases. folder: for its files, the run's directory; None: the working directory."""

    def __init__(self, run: str, folder: Path | None) -> None:
        self.run, self.folder = run, folder
        self._runs: dict[str, Any] = {}

    def log(self, trial: str, settings: dict[str, Setting], points: Sequence[Point]) -> None:
        """Add epochs to the trial's run; a step that it has is not taken again."""
        own = self._run(trial, settings)
        for point in points:
            prefix = "" if point.fold == 0 else f"fold-{point.fold}/"
            values = {f"{prefix}{name}": value for name, value in point.values.items()}
            own.log({**values, f"{prefix}epoch": point.step}, step=point.index)

    def end(self, trial: str, settings: dict[str, Setting], state: str, score: float | None) -> None:
        """Leave the trial's state and score, and end its run."""
        own = self._run(trial, settings)
        own.summary.update({"state": state} | ({} if score is None else {"score": score}))
        self._runs.pop(trial).finish()

    def ensemble(self, name: str, scores: dict[str, float], report: Path | None) -> None:
        """The scores as a run's summary, and the report as its artefact, unless there are pictures in it."""
        import wandb

        own = self._run(f"ensemble-{name}", {})
        own.summary.update(scores)
        if report is not None and PICTURE not in report.read_bytes():
            artefact = wandb.Artifact(f"{self.run}-report", type="report")
            artefact.add_file(str(report), name="report.html")
            own.log_artifact(artefact)
        self._runs.pop(f"ensemble-{name}").finish()

    def close(self) -> None:
        """End what is open; it goes on under the same id when the sweep does."""
        for own in self._runs.values():
            own.finish()
        self._runs.clear()

    def _run(self, name: str, settings: dict[str, Setting]) -> Any:
        if name not in self._runs:
            import wandb

            private = wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                save_code=False,
                host="-",
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            )
            self._runs[name] = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                group=self.run,
                name=name,
                id=f"{self.run}-{name}",
                resume="allow",
                reinit="create_new",
                config=settings,
                dir=None if self.folder is None else str(self.folder),
                settings=private,
            )
        return self._runs[name]
