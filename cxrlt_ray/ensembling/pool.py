"""What an ensemble chooses among: a run's trials, their validation predictions, and what each costs an image."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from cxrlt_ray.cluster.memory import available_memory
from cxrlt_ray.data.manifest import Manifest, studies
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.runs.predictions import augmented_name
from cxrlt_ray.runs.records import FINISHED, PRUNED
from cxrlt_ray.runs.store import Run, Trial
from cxrlt_ray.selection.inputs import FEW
from cxrlt_ray.storage import Store

TTA = augmented_name("val", True)
DRAWS = 200  # of subjects, for what it gains: 39,293 images x 40 findings take about 1 s a trial on 2 cores
ENOUGH = 2  # finished trials, without which pruned ones are chosen among
# of the predictions, in memory while it is chosen: the pool's own, those that greedy sorts by label, these in 16 bits
COPIES = 2.5
ANOTHER = 1.0  # where they are brought into another space, or a study's images are joined
AGAIN = 2.0  # of --explain, which chooses among parts of them
SHARE = 0.9  # of the free memory to be used where not all trials fit


@dataclass(frozen=True)
class Pool:
    """What there is to choose from: M trials' predictions float32 [M, N, C] of the same N validation images."""

    names: list[str]
    image_id: np.ndarray
    predictions: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    trials: list[Trial]  # [] where the predictions are not of a run
    costs: np.ndarray | None = None  # [M], of scoring an image; None where not known
    study: np.ndarray | None = None
    view: np.ndarray | None = None
    tta: tuple[bool, ...] = ()  # which trials look under test-time augmentation; () for none

    def split_of(self, m: int, split: str) -> str:
        """The name under which trial m's predictions of `split` are kept."""
        return augmented_name(split, bool(self.tta) and self.tta[m])

    def passes(self, m: int) -> int:
        """Forward passes that trial m takes to score an image: 1 without test-time augmentation."""
        record = self.trials[m].record.tta if self.tta and self.tta[m] else None
        return record.augmentations if record else 1


def candidates(run: Run, split: str | None, pruned: bool = False, say: Any = print) -> list[Trial]:
    """Trials that can be chosen: with validation predictions, and able to score `split` or having done so.

    Pruned ones only if asked for, or where fewer than ENOUGH finished: chosen among, they cost an ensemble of what
    it finds on other subjects (benchmarks/search.py). Raises CxrltError where there is none.
    """
    # a trial that still runs would change under the ensemble, or be run anew by --resume
    judged = [trial for trial in run.trials() if trial.state in (FINISHED, PRUNED) and trial.has_predictions()]
    able = [t for t in judged if split is None or t.checkpoints or t.has_predictions(split)]
    if len(able) < len(judged):
        say(f"{len(judged) - len(able)} trial(s) cannot be chosen: their checkpoints were dropped")
    finished = [trial for trial in able if trial.state == FINISHED]
    if not pruned and len(finished) >= ENOUGH and len(finished) < len(able):
        say(f"{len(able) - len(finished)} pruned trial(s) left out (--pruned chooses among them too)")
        able = finished
    if not able:
        raise CxrltError(
            f"run {run.name} has no finished trial to choose from: `python -m cxrlt_ray.trials {run.name}` says why; "
            f"continue it with `python -m cxrlt_ray.sweep {run.record.task_argument} --resume --name {run.name}`."
        )
    return able


def gather(
    run: Run,
    manifest: Manifest,
    trials: list[Trial],
    say: Any = print,
    most: int | None = None,
    copies: float = COPIES,
) -> Pool:
    """The trials' validation predictions side by side; a trial whose file does not fit is named and left out.

    most: so many trials are chosen among, the `foremost`; None: as many as memory holds `copies` of (all, where it
    does). Files are read one after the other into their place, twice where not all can stay.
    """
    findings, limit = list(run.task.findings), most or _room(trials, copies)
    if len(trials) > limit:
        say(f"{len(trials):,} trials are more than " + (f"--most {most:,}" if most else f"the {limit:,} memory holds"))
        trials = _foremost_of(manifest, findings, trials, limit, say)
        say(f"Chosen among: the {len(trials):,} first by validation AP, each finding's and over all, in turn")
    kept: list[Trial] = []
    for trial, frame in _readable(trials, say):
        if not kept:
            ids, there = frame.index, np.ones(len(frame), bool)
            predictions = np.empty((len(findings), len(trials), len(ids)), np.float32)
        if not frame.index.equals(ids):
            there &= ids.isin(frame.index)
            frame = frame.reindex(ids)
        predictions[:, len(kept)] = frame[findings].to_numpy(np.float32).T
        kept.append(trial)
    if not kept:
        raise CxrltError(f"none of the {len(trials)} trials of run {run.name} has predictions that fit it.")
    if len(kept) < len(trials) or not there.all():
        predictions = np.ascontiguousarray(predictions[:, : len(kept), there])
    table = manifest.table.set_index("image_id")
    rows = pd.Index(table.index).get_indexer(ids[there])
    return Pool(
        [trial.name for trial in kept],
        ids[there].to_numpy(),
        predictions.transpose(1, 2, 0),  # laid out as selection.honest.side_by_side
        manifest.targets(run.task.findings)[rows],
        table["subject_id"].to_numpy()[rows],
        kept,
        *studies(manifest.table.iloc[rows]),
    )


def _readable(trials: list[Trial], say: Any) -> Iterator[tuple[Trial, pd.DataFrame]]:
    """Trials with their validation predictions, one at a time; what does not fit is named."""
    for trial in trials:
        try:
            yield trial, trial.predictions()
        except CxrltError as error:
            say(f"Left out {trial.name}: {error}")


def _room(trials: list[Trial], copies: float) -> int:
    """Of how many trials memory holds `copies` of the predictions; all of them where that is not known."""
    frame = next((frame for _, frame in _readable(trials, lambda _: None)), None)
    if frame is None or (free := available_memory()) is None:
        return len(trials)
    each = frame.size * np.dtype(np.float32).itemsize * copies
    return len(trials) if len(trials) * each <= free else max(1, int(SHARE * free / each))


def _foremost_of(manifest: Manifest, findings: list[str], trials: list[Trial], most: int, say: Any) -> list[Trial]:
    """The `foremost` of the trials, whose predictions are read one by one and not kept."""
    from cxrlt_ray.selection import exact

    kept, scores, places = [], [], pd.Index(manifest.table["image_id"])
    everyone, ids = manifest.targets(tuple(findings)), None
    for trial, frame in _readable(trials, say):
        if ids is None or not frame.index.equals(ids):
            ids = frame.index
            targets = everyone[places.get_indexer(ids)]
            few = (targets == 1).sum(axis=0) < FEW
        scores.append(np.where(few, np.nan, exact.precisions(frame[findings].to_numpy(np.float32)[None], targets)[0]))
        kept.append(trial)
    return [kept[m] for m in foremost(np.array(scores), most)] if kept else trials


def foremost(ap: np.ndarray, most: int) -> np.ndarray:
    """Which `most` of M members to choose among, int [P] in order, by their AP [M, C]; nan where it says nothing.

    Taken in turn: each finding's best member and the best by the mean over findings, then each one's second ...;
    of those equally high in some list, the better by the mean. One that is good at a rare finding alone is not lost.
    """
    known = ~np.isnan(ap).all(axis=0)
    means = np.nanmean(ap[:, known], axis=1) if known.any() else np.zeros(len(ap))
    lists = -np.column_stack([means, np.nan_to_num(ap[:, known])]).round(12)
    places = lists.argsort(axis=0, kind="stable").argsort(axis=0)
    return np.sort(np.lexsort([places[:, 0], places.min(axis=1)])[:most])


def under_tta(pool: Pool, tta: str, split: str | None = None, seed: int = 0, say: Any = print) -> Pool:
    """The pool with trials' predictions under test-time augmentation in the place of the plain ones, as `tta` says.

    on: of every trial that has them and can score `split` so.  off: of none.  auto: of those whose validation mAP they
    raise by more than one standard error of the difference (bootstrap by subject); each is told with its price.
    This choice sees all validation subjects, as epoch choice did, and cross-fitting does not undo it: it is one bit a
    trial, and the margin keeps luck from being paid for at every image. Raises UsageError where `on` finds none.
    """
    if tta == "off":
        return pool
    looked, predictions = _looked(pool, split, say), pool.predictions
    found: set[int] = set()
    for m, values in looked:
        if tta == "on" or _gains(pool, m, values, seed, say):
            if not found:
                predictions = pool.predictions.copy(order="K")
            predictions[m] = values
            found.add(m)
    if tta == "on":
        if not found:
            raise UsageError(
                f"tta: on needs trials scored under test-time augmentation, which {', '.join(pool.names)} lack: "
                "sweep a space that has `tta` (as in `tta: flip`), or set tta: auto in the ensembles/ file."
            )
        lacking = [name for m, name in enumerate(pool.names) if m not in found]
        say(
            f"Test-time augmentation: {len(found)} of {len(pool.names)} trials look at an image several times"
            + (f"; {', '.join(lacking)} cannot" if lacking else "")
        )
    return replace(pool, predictions=predictions, tta=tuple(m in found for m in range(len(pool.names))))


def _looked(pool: Pool, split: str | None, say: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Trials that can look under test-time augmentation, and their predictions [N, C] so."""
    for m, trial in enumerate(pool.trials):
        if not trial.has_predictions(TTA):
            continue
        if split is not None and not trial.checkpoints and not trial.has_predictions(augmented_name(split, True)):
            say(f"{trial.name} looks plainly: its checkpoint was dropped, {split} images cannot be scored otherwise")
            continue
        try:
            frame = trial.predictions(TTA)
        except CxrltError as error:
            say(f"{trial.name} looks plainly: {error}")
            continue
        values = frame.reindex(pool.image_id)[list(trial.record.findings)].to_numpy(np.float32)
        if np.isnan(values).any():
            say(f"{trial.name} looks plainly: its predictions under test-time augmentation lack images")
            continue
        yield m, values


def _gains(pool: Pool, m: int, values: np.ndarray, seed: int, say: Any) -> bool:
    """Whether trial m's predictions under test-time augmentation are better than its plain ones by more than chance."""
    from cxrlt_ray.selection import exact

    systems = [np.ascontiguousarray(pool.predictions[m]), values]
    plain, looked = (metrics.macro(ap) for ap in exact.precisions(np.stack(systems), pool.targets))
    drawn = metrics.bootstrap_map(pool.targets, systems, pool.groups, rounds=DRAWS, seed=seed)
    difference = drawn[1] - drawn[0]
    taken = bool(looked - plain > np.nanstd(difference))
    low, high = (_signed(end) for end in metrics.interval(difference))
    record = pool.trials[m].record.tta
    passes, price = (record.augmentations, record.price) if record else (1, 1.0)
    say(
        f"{pool.names[m]} TTA of {passes} looks: {_signed(looked - plain)} [{low}, {high}] at "
        f"{price:.1f} times the price: {'taken' if taken else 'refused'}"
    )
    return taken


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1)


def read_costs(path: str, names: list[str]) -> np.ndarray:
    """The members' costs [M] in a CSV of two columns, member and cost. Raises CxrltError naming what is wrong."""
    folder, _, name = path.rpartition("/")
    try:
        table = pd.read_csv(io.BytesIO(Store(folder or ".").read(name)), dtype={0: str}).iloc[:, :2]
        costs = pd.to_numeric(table.set_index(table.columns[0]).iloc[:, 0])
    except (ValueError, IndexError) as error:
        raise CxrltError(f"{path} is no table of members and their costs: {error}.") from None
    if lacking := [each for each in names if each not in costs.index]:
        raise CxrltError(f"{path} has no cost of {lacking[0]}: give each of {', '.join(names)} a row.")
    return costs[~costs.index.duplicated()].loc[names].to_numpy(float)
