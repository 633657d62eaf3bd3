"""ASHA as Ray Tune has it, that goes on after the sweep was cut off: it is told again what trials had reported.

Where a space promotes by the ensemble, the rungs are the same, and search/promotion.py decides at them.

With ASHA or without, Tune forgets the trials that have ended: it would keep some 90 KB of each.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from cxrlt_ray.cluster import ray_private
from cxrlt_ray.objectives.metric import VAL_MAP, Metric
from cxrlt_ray.runs.records import RUNNING
from cxrlt_ray.runs.store import Run, Trial
from cxrlt_ray.search.promotion import Promoter
from cxrlt_ray.search.space import ENSEMBLE, REDUCTION, Space
from cxrlt_ray.search.trial_states import learning_curve, trial_name, trial_number


class ForgetfulScheduler(FIFOScheduler):
    """Tune's scheduler that stops no trial, and lets Tune forget those that have ended: the store has them."""

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """As Tune's own; it is asked at every step of the sweep."""
        ray_private.forget_ended_trials(tune_controller)
        return super().choose_trial_to_run(tune_controller)


class ResumableASHA(ForgetfulScheduler, ASHAScheduler):
    """ASHA that knows trials by the names they have in the store, and can be told what they had reported."""

    def recall(self, trials: list[Trial], metric: Metric = VAL_MAP) -> list[int]:
        """Record the epochs of a run's trials; the numbers of those that run which it would have stopped at their last.

        A trial that went on after an epoch had passed its rung, among the trials that were there by then.
        """
        sign = 1.0 if metric.mode == "max" else -1.0
        stopped = []
        for trial in trials:
            decision = None
            for epoch, score in learning_curve(trial):
                known = epoch < ray_private.asha_max_epochs(self) and score == score
                decision = ray_private.asha_decision(self, trial.name, epoch, sign * score) if known else None
            if decision == TrialScheduler.STOP and trial.state == RUNNING and trial.record.retraining is None:
                stopped.append(trial_number(trial))
        return stopped

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """As ASHAScheduler."""
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """As ASHAScheduler."""
        return super().on_trial_result(tune_controller, _named(trial), result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """As ASHAScheduler."""
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """As ASHAScheduler."""
        super().on_trial_remove(tune_controller, _named(trial))


class EnsembleASHA(ForgetfulScheduler):
    """ASHA whose rungs compare trials by what they add to the ensemble of the others.

    score: its name among a trial's reports. max_epochs: of the longest trial.
    """

    def __init__(self, promoter: Promoter, score: str, max_epochs: int) -> None:
        super().__init__()
        self.promoter, self.score, self.max_epochs = promoter, score, max_epochs

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP or CONTINUE; a stage that is judged by another metric goes on."""
        epochs, score = result.get("epoch"), result.get(self.score)
        if epochs is None or score is None:
            return TrialScheduler.CONTINUE
        if epochs >= self.max_epochs:
            return TrialScheduler.STOP
        goes_on = self.promoter.goes_on(trial_name(trial.config["number"]), epochs, score)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


def _named(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial_name(trial.config["number"]))


def scheduler_of(space: Space, steps: int, run: Run, metric: Metric = VAL_MAP) -> tuple[TrialScheduler, list[int]]:
    """ASHA with what a run's trials reported, and the numbers of trials that it stops by that.

    Where the space says `prune: false` no trial is stopped. steps: reports of the longest trial.
    """
    if not space.prune:
        return ForgetfulScheduler(), []
    if space.promote == ENSEMBLE:
        promoter = Promoter(run, space.rungs(steps))
        return EnsembleASHA(promoter, metric.name, steps), promoter.recall(run.trials())
    # by epoch, not by Tune's count of reports: a stage that was trained before is not reported again
    asha = ResumableASHA("epoch", max_t=steps, grace_period=space.grace(steps), reduction_factor=REDUCTION)
    return asha, asha.recall(run.trials(), metric)
