"""Which trials of an ensemble score under test-time augmentation: those whose validation mAP shows no reason not to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.ensembling.pool import Pool, Say
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample
from cxrlt_ray.runs.predictions import augmented_name

AUGMENTED = augmented_name("val", True)
CHEAP = 2  # passes: the image and its mirror image
DRAWS = 200  # of subjects, for what it gains: 39,293 images x 40 findings take about 1 s a trial on 2 cores


def under_tta(pool: Pool, tta: str, split: str | None = None, seed: int = 0, say: Say = print) -> Pool:
    """The pool with trials' predictions under test-time augmentation in the place of the plain ones, as `tta` says.

    on: of every trial that has them and can score `split` so.  off: of none.  auto: of those whose validation mAP they
    raise by more than one standard error of the difference (bootstrap by subject). The mirror image of a model that has
    learnt from mirrored images is taken unless it loses as much: the mean of two scores that differ by chance alone
    errs less than one, and few images cannot show it. A line says each one's gain and price. This choice sees all
    validation subjects, as epoch choice did, and cross-fitting does not undo it: it is one bit a trial, and the margin
    keeps luck from being paid for many times at every image. Raises UsageError where `on` finds none.
    """
    if tta == "off":
        return pool
    predictions = pool.predictions
    taken: set[int] = set()
    for m, values in _augmented(pool, split, say):
        if tta == "on" or _gains(pool, m, values, seed, say):
            if not taken:
                predictions = pool.predictions.copy(order="K")
            predictions[m] = values
            taken.add(m)
    if tta == "on":
        if not taken:
            raise UsageError(
                f"tta: on needs trials scored under test-time augmentation, which {', '.join(pool.names)} lack: "
                "sweep a space that has `tta` (as in `tta: flip`), or set tta: auto in the ensembles/ file."
            )
        plain = [name for m, name in enumerate(pool.names) if m not in taken]
        say(
            f"Test-time augmentation: {len(taken)} of {len(pool.names)} trials score an image several times"
            + (f"; {', '.join(plain)} cannot" if plain else "")
        )
    return replace(pool, predictions=predictions, tta=tuple(m in taken for m in range(len(pool.names))))


def _augmented(pool: Pool, split: str | None, say: Say) -> Iterator[tuple[int, np.ndarray]]:
    """Trials that can score under test-time augmentation, and their validation predictions [N, C] so."""
    for m, trial in enumerate(pool.trials):
        if not trial.has_predictions(AUGMENTED):
            continue
        if split is not None and not trial.checkpoints and not trial.has_predictions(augmented_name(split, True)):
            say(f"{trial.name} scores plainly: its checkpoint was dropped, {split} images cannot be scored otherwise")
            continue
        try:
            frame = trial.predictions(AUGMENTED)
        except CxrltError as error:
            say(f"{trial.name} scores plainly: {error}")
            continue
        values = frame.reindex(pool.image_id)[list(trial.record.findings)].to_numpy(np.float32)
        if np.isnan(values).any():
            say(f"{trial.name} scores plainly: its predictions under test-time augmentation lack images")
            continue
        yield m, values


def _gains(pool: Pool, m: int, values: np.ndarray, seed: int, say: Say) -> bool:
    """Whether trial m's predictions under test-time augmentation are taken for its plain ones, as `auto` does."""
    from cxrlt_ray.selection.average_precision import precisions

    systems = [np.ascontiguousarray(pool.predictions[m]), values]
    plain, augmented = (metrics.macro(ap) for ap in precisions(np.stack(systems), pool.targets))
    draws = metrics.bootstrap_map(pool.targets, systems, pool.groups, rounds=DRAWS, seed=seed)
    difference = draws[1] - draws[0]
    gain = Estimate.of_difference(augmented - plain, difference, Sample.of(pool.targets, pool.groups))
    record = pool.trials[m].record.tta
    passes, price = (record.augmentations, record.price) if record else (1, 1.0)
    cheap = passes <= CHEAP and pool.trials[m].config.flip > 0
    taken = bool(gain.value > np.nanstd(difference) * (-1 if cheap else 1))
    interval = f"[{_signed(gain.low)}, {_signed(gain.high)}]" if gain.known else cli.TOO_FEW
    say(
        f"{pool.names[m]} TTA of {passes} passes: {_signed(gain.value)} {interval} at "
        f"{price:.1f} times the price: {'taken' if taken else 'refused'}"
    )
    return taken


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1)
