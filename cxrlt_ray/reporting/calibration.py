"""Calibration and thresholds of an ensemble, on the console."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cxrlt_ray import cli
from cxrlt_ray.ensembling.compare import CROSS_FITTED
from cxrlt_ray.ensembling.probabilities import Probabilities, thresholds_table
from cxrlt_ray.evaluation.calibration import Calibration
from cxrlt_ray.evaluation.calibration_change import BRIER, ECE, LOG_LOSS, Change
from cxrlt_ray.evaluation.estimate import Estimate
from cxrlt_ray.evaluation.thresholds import Operation

if TYPE_CHECKING:
    from rich.table import Table

NAMES = {LOG_LOSS: "log loss", BRIER: "Brier score", ECE: "ECE"}
CROSSED = "validation, cross-fitted"
MARK = "*"  # beside a threshold that is not what was aimed at


def show(made: Probabilities) -> None:
    """Print what was made of the ensemble's scores."""
    console = cli.console()
    if made.calibration is not None:
        console.print(_changes_table(made))
        for line in (*_methods(made.calibration), *_about()):
            console.print(line, markup=False, soft_wrap=True)
    if made.thresholds:
        console.print(_thresholds_table(made))
        for note in dict.fromkeys(one.note for one in made.thresholds if one.note):
            print(f"{MARK} {note}")
        print(
            "Cross-fitted: validation images, called by thresholds chosen without their subjects. Alarms: false ones in"
        )
        print("1,000 images.")


def _changes_table(made: Probabilities) -> Table:
    """The mean over findings of log loss, Brier score and ECE before and after, by set of images."""
    from rich.text import Text

    from cxrlt_ray.output.tables import RecordTable

    table = RecordTable("calibration", "mean over findings", "before", "after", "after less before")
    for name, calibrated in made.calibrated.items():
        change = calibrated.change
        table.add_row(Text(f"{_set(name)}, {change.images:,} images", style="bold"))
        for key, title in NAMES.items():
            table.add_record(_record(name, change.mean, key), title, *_row(change.mean, key))
        before, after = change.mean.before, change.mean.after
        table.add_row("  of calibrated scores, by chance", *(cli.short(q.ece_by_chance) for q in (before, after)))
        table.add_row("  debiased", *(cli.short(q.ece_debiased) for q in (before, after)))
    return table


def _record(where: str, change: Change, key: str) -> dict[str, object]:
    before, after = (getattr(quality, key) for quality in (change.before, change.after))
    return {"set": where, "measure": key, "before": before, "after": after, "change": change.differences[key]}


def _row(change: Change, key: str) -> tuple[str, str, str]:
    before, after, difference = getattr(change.before, key), getattr(change.after, key), change.differences[key]
    known = difference.value == difference.value  # no finding has positives: it is nan
    gained = cli.gained(difference.value, difference.low, difference.high) if known else "-"
    return _cell(before), _cell(after), gained


def _methods(calibration: Calibration) -> list[str]:
    """How many findings each method was taken for, and which findings were left as they are, and why."""
    kept = calibration.findings
    counts = Counter(one.method for one in kept.values() if not one.left)
    taken = ", ".join(f"{method} {count}" for method, count in counts.most_common())
    lines = [f"Methods chosen by cross-fitted log loss, with their findings: {taken}"] if taken else []
    by_reason: dict[str, list[str]] = {}
    for name, one in kept.items():
        if one.left:
            by_reason.setdefault(one.left, []).append(name)
    return lines + [f"Left as they are ({reason}): {', '.join(names)}" for reason, names in by_reason.items()]


def _about() -> tuple[str, ...]:
    return (
        "ECE: 15 bins with equal numbers of images. It is biased upwards: calibrated scores would have that by chance.",
        "Rankings, and so mAP and AUROC, are as before.",
    )


def _thresholds_table(made: Probabilities) -> Table:
    from rich.table import Column
    from rich.text import Text

    from cxrlt_ray.output.tables import RecordTable

    heads = ("threshold", "images", "sensitivity", "FPR", "precision", "alarms")
    table = RecordTable(
        "thresholds", *(Column(head, no_wrap=True) for head in ("finding", *heads)), padding=(0, 1, 0, 0)
    )
    rows = iter(thresholds_table(made).to_dict("records"))  # in the order of those below
    aim = None
    for k, one in enumerate(made.thresholds):
        if one.aim != aim:
            aim = one.aim
            table.add_row(Text(str(aim), style="bold"))
        value = f"{one.value:.3g}{MARK if one.note else ''}"
        cells = [(one.finding, value, "cross-fitted", *_operation(one.crossed))]
        cells += [("", "", name, *_operation(done[k])) for name, done in made.operations.items()]
        for line in cells:
            table.add_record({str(key): v for key, v in next(rows).items()}, *line)
    return table


def _operation(done: Operation) -> tuple[str, ...]:
    rates = (done.sensitivity, done.fpr, done.precision)
    return (*map(_cell, rates), f"{done.false_alarms.value:.0f}")


def _set(name: str) -> str:
    return CROSSED if name == CROSS_FITTED else name


def _cell(estimate: Estimate) -> str:
    return cli.ranged(estimate.value, estimate.low, estimate.high)
