"""What a sweep prints while it runs: a line a trial, and of long trials a line from time to time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ray import tune

from cxrlt_ray import output
from cxrlt_ray.objectives.metric import VAL_MAP, Metric
from cxrlt_ray.output.counting import Counter
from cxrlt_ray.runs.records import FAILED, RUNNING
from cxrlt_ray.runs.store import Run, Trial, best_first
from cxrlt_ray.search.pacing import reads_features
from cxrlt_ray.search.trial_states import retries_of, trial_name

SILENCE = 60.0  # seconds after which an epoch is printed


@dataclass
class Progress(tune.Callback):
    """One line a finished trial: how it did, the best so far, images/s, time left; and of long trials, of epochs.

    trials: of the whole run. missing: that were not done when the sweep began. deadline: of the time budget, by
    time.monotonic(): where fewer trials will be done by then, that is printed as soon as it is foreseen. open_ended:
    trials are begun until then, however many were planned. counter: of the run's trials.
    """

    run: Run
    trials: int
    missing: int
    metric: Metric = VAL_MAP
    deadline: float | None = None
    open_ended: bool = False
    counter: Counter | None = None

    def __post_init__(self) -> None:
        self.started, self.printed, self.done = time.monotonic(), time.monotonic(), 0
        self.probes, self.probing = 0, 0.0  # trials of stored features, and their seconds
        self.foreseen = self.missing

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Print an epoch where nothing was printed for SILENCE seconds; a stage may be judged by another metric."""
        if time.monotonic() - self.printed > SILENCE:
            self.printed = time.monotonic()
            score, name = result.get(self.metric.name), trial_name(trial.config["number"])
            best = f", best {self.metric.title} {score:.4f}" if score is not None else ""
            record = {key: result[key] for key in ("epoch", "images_per_second")} | {"trial": name, "best": score}
            line = f"  {name} epoch {result['epoch']}{best}, {result['images_per_second']:.0f} images/s"
            output.row("epochs", record, line)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print a trial that finished or was pruned."""
        self._print(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that a trial is begun anew."""
        name = trial_name(trial.config["number"])
        retries = retries_of(self.run.trial(name))
        print(f"  {name} is begun anew: {retries[-1].reason if retries else 'it failed'}", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print a trial that failed."""
        self._print(trial)

    def _print(self, tune_trial: Any) -> None:
        name = trial_name(tune_trial.config["number"])
        trials = self.run.trials()
        trial = next((trial for trial in trials if trial.name == name), None)
        if trial is None or trial.state == RUNNING:
            return  # the sweep is stopped
        self.done += 1
        self.printed = time.monotonic()
        seconds = self._seconds_of_a_training(trial)
        left = seconds * (self.missing - self.done)
        if self.deadline is not None and (self.open_ended or not seconds):
            left = max(0.0, self.deadline - time.monotonic())
        scored = best_first(trial for trial in trials if trial.score == trial.score)
        best = f"best {scored[0].score:.4f} ({scored[0].name})" if scored else "none yet"
        total = self.trials - self.missing + self.done
        line = f"[{total}/{max(total, self.trials)}] {line_of(trial)} | {best} | {left / 60:.1f} min left"
        output.row("ended_trials", {"trial": name, "state": trial.state, "score": trial.score}, line)
        if self.counter is not None:
            self.counter.advance(seconds_left=left)
        self._print_unreached(seconds)

    def _seconds_of_a_training(self, ended: Trial) -> float:
        """The mean of those that have ended, 0 before the first. A budget's probes take far less and do not count."""
        config = ended.record.config
        if self.deadline is not None and config is not None and reads_features(config):
            self.probes += 1
            self.probing += (ended.record.ended or 0.0) - (ended.record.began or 0.0)
        elapsed = max(0.0, time.monotonic() - self.started - self.probing)
        return elapsed / (self.done - self.probes) if self.done > self.probes else 0.0

    def _print_unreached(self, seconds: float) -> None:
        """Print how many trials the time budget holds, where that is fewer than was printed before.

        seconds: that a training takes; 0 before one has ended.
        """
        if self.deadline is None or not seconds:
            return
        reached = self.done + max(0, int((self.deadline - time.monotonic()) / max(seconds, 1e-9)))
        if reached < self.foreseen:
            self.foreseen, before = reached, self.trials - self.missing
            print(f"  the time budget holds about {before + reached} of {self.trials} trials", flush=True)


def line_of(trial: Trial) -> str:
    """A trial that has ended, in a line: its score and how it was trained, or why it failed."""
    record, config = trial.record, trial.record.config
    if config is None or trial.state == FAILED:
        return f"{trial.name} failed: {record.reason}"
    return (
        f"{trial.name} {trial.state:8} {record.metric.title} {trial.score:.4f}  {len(record.epochs)} epochs  "
        f"{record.images_per_second or 0:.0f} images/s  {config.backbone} {config.resolution} px {config.loss}"
    )
