"""What an ensemble chooses among: a run's trials and their validation predictions, as many as memory holds."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.cluster.memory import available_memory
from cxrlt_ray.data.asking import Asking
from cxrlt_ray.data.manifest import Manifest, studies
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.ensembling.shortlist import FirstPass, Say, aligned, first_readable, readable, shortlist
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.predictions import augmented_name
from cxrlt_ray.runs.records import FINISHED, PRUNED, RunRecord
from cxrlt_ray.runs.store import REFIT, Run, Trial
from cxrlt_ray.search.resume import resume_command

ENOUGH = 2  # finished trials, without which pruned ones are chosen among
# of the predictions, in memory while it is chosen: the pool's own, those that greedy sorts by label, these in 16 bits
COPIES = 2.5
ANOTHER = 1.0  # where they are brought into another space, or a study's images are joined
AGAIN = 2.0  # of --explain, which chooses among parts of them
SHARE = 0.9  # of the free memory to be used where not all trials fit


@dataclass(frozen=True)
class Pool:
    """M members' predictions of the same N validation images.

    predictions: float32 [M, N, C]. targets: int8 [N, C], 1, 0 or -1 (not labelled). groups: [N] subjects.
    trials: [M], or [] where the predictions are not of a run. costs: [M], of scoring an image; None where not known.
    study, view: [N]; None where not known. tta: [M] which members score under test-time augmentation; () for none.
    findings: [C], their names; () where not known. asking: of a run that asks for findings by text, whose
    labels are not among the targets.
    """

    names: list[str]
    image_id: np.ndarray
    predictions: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    trials: list[Trial]
    costs: np.ndarray | None = None
    study: np.ndarray | None = None
    view: np.ndarray | None = None
    tta: tuple[bool, ...] = ()
    findings: tuple[str, ...] = ()
    asking: Asking | None = None

    def augmented(self, m: int) -> bool:
        """Whether member m scores under test-time augmentation."""
        return bool(self.tta) and self.tta[m]

    def split_of(self, m: int, split: str) -> str:
        """The name under which trial m's predictions of `split` are kept."""
        return augmented_name(split, self.augmented(m))

    def passes(self, m: int) -> int:
        """Forward passes that trial m takes to score an image: 1 without test-time augmentation."""
        record = self.trials[m].record.tta if self.augmented(m) else None
        return record.augmentations if record else 1


def candidates(run: Run, split: str | None, pruned: bool = False, say: Say = print) -> list[Trial]:
    """Trials that can be chosen: with validation predictions, and able to score `split` or having done so.

    Where the data has no such images, split is None: then able to score new ones, if any trial is. Pruned ones only if
    asked for, or where fewer than ENOUGH finished: chosen among, they cost an ensemble of what it finds on other
    subjects (benchmarks/search.py). Raises CxrltError where there is none.
    """
    # a trial that still runs would change under the ensemble, or be run anew by --resume
    files = run.files()  # one listing: of 10,000 trials on an object store single questions take minutes

    def scores(trial: Trial, part: str) -> bool:
        return f"predictions/{part}.parquet" in files.get(trial.name, {})

    def has_checkpoint(trial: Trial) -> bool:
        return any(path.startswith(("fold-", f"{REFIT}/")) for path in files.get(trial.name, {}))

    judged = [trial for trial in run.trials() if trial.state in (FINISHED, PRUNED) and scores(trial, "val")]
    able = [t for t in judged if has_checkpoint(t) or (split is not None and scores(t, split))]
    if split is None and not able:
        able = judged
    if len(able) < len(judged):
        say(f"Without checkpoints, which were dropped, and not chosen: {counted(len(judged) - len(able), 'trial')}")
    finished = [trial for trial in able if trial.state == FINISHED]
    if not pruned and len(finished) >= ENOUGH and len(finished) < len(able):
        say(f"Left out: {counted(len(able) - len(finished), 'pruned trial')} (--pruned chooses among them too)")
        able = finished
    if not able:
        raise CxrltError(
            f"run {run.name} has no finished trial to choose from: `python -m cxrlt_ray.trials {shlex.quote(run.name)}`"
            f" says why; continue it with `{resume_command(run, run.store.uri.rpartition('/')[0])}`."
        )
    return able


def best_of_each(trials: list[Trial], parameter: str, say: Say = print) -> list[Trial]:
    """Of the trials with the same value of `parameter` (a field of TrialConfig) the one with the best score, in order.

    So a grid of learning rates becomes one member a resolution. The choice sees all validation subjects, as epoch
    choice did, and cross-fitting does not undo it.
    """
    best: dict[str, Trial] = {}
    for trial in trials:
        value = repr(getattr(trial.config, parameter))  # settings of a loss are a mapping
        if value not in best or trial.record.metric.better(trial.score, best[value].score):
            best[value] = trial
    chosen = [trial for trial in trials if any(trial is other for other in best.values())]
    if len(chosen) < len(trials):
        say(f"{len(chosen)} of {len(trials)} trials are chosen among: the best of each {parameter}")
    return chosen


def gather(
    run: Run,
    manifest: Manifest,
    trials: list[Trial],
    say: Say = print,
    most: int | None = None,
    copies: float = COPIES,
    first: FirstPass | None = None,
) -> Pool:
    """The trials' validation predictions side by side; a trial whose file does not fit is named and left out.

    most: so many trials are chosen among, the `shortlist` by `first`; None: as many as memory holds `copies` of (all,
    where it does). Files are read one after the other into their place, twice where not all can stay.
    """
    findings, trials = run.record.predicted, [trial for trial in trials if _of_run(trial, run, say)]
    limit, targets = most or _room(trials, copies), chosen_by(manifest, run.record)
    if len(trials) > limit:
        say(f"{len(trials):,} trials are more than " + (f"--most {most:,}" if most else f"the {limit:,} memory holds"))
        trials = shortlist(manifest, targets, trials, limit, first, say)
    able: list[Trial] = []
    for trial, stored in readable(trials, say):
        if not able:
            ids, shared = stored.image_id, np.ones(len(stored.image_id), bool)
            predictions = np.empty((len(findings), len(trials), len(ids)), np.float32)
        scores, present = aligned(stored, ids)
        shared &= present
        predictions[:, len(able)] = scores.T
        able.append(trial)
    if not able:
        raise CxrltError(f"no trial of run {run.name} has predictions that fit it.")
    if not shared.all():
        say(f"Left out: {(~shared).sum():,} of {len(ids):,} validation images, which some trials have not scored")
    if len(able) < len(trials) or not shared.all():
        predictions = np.ascontiguousarray(predictions[:, : len(able), shared])
    table = manifest.table.set_index("image_id")
    rows = pd.Index(table.index).get_indexer(ids[shared])
    study, view = studies(manifest.table.iloc[rows])
    return Pool(
        names=[trial.name for trial in able],
        image_id=ids[shared],
        predictions=predictions.transpose(1, 2, 0),  # laid out as selection.honest.side_by_side
        targets=targets[rows],
        groups=table["subject_id"].to_numpy()[rows],
        trials=able,
        study=study,
        view=view,
        findings=findings,
        asking=run.record.asking,
    )


def _of_run(trial: Trial, run: Run, say: Say) -> bool:
    """Whether a trial is of the run's images and findings; one copied from another run may not be, and is named."""
    record, ours = trial.record, run.record
    alike = record.findings == ours.predicted and ours.fingerprint in ("", record.fingerprint)
    if not alike:
        say(f"Left out {trial.name}: it was trained on other images, splits or findings than those of run {run.name}")
    return alike


def chosen_by(manifest: Manifest, record: RunRecord) -> np.ndarray:
    """The labels int8 [N, C] of the predicted findings by which trials are chosen; of asked ones mined labels alone."""
    targets = manifest.targets(record.predicted)
    asking = record.asking
    asked = np.isin(record.predicted, asking.asked if asking and not asking.by_mined else [])
    return np.where(asked, np.int8(-1), targets)


def _room(trials: list[Trial], copies: float) -> int:
    """Of how many trials memory holds `copies` of the predictions; all of them where that is not known."""
    stored = first_readable(trials)
    if stored is None or (free := available_memory()) is None:
        return len(trials)
    trial_bytes = stored.probabilities.size * np.dtype(np.float32).itemsize * copies
    return len(trials) if len(trials) * trial_bytes <= free else max(1, int(SHARE * free / trial_bytes))
