"""What a trial cost to train and costs to serve, as far as its record and its files say."""

from __future__ import annotations

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.page.facts import Facts
from cxrlt_ray.runs.cost import flops_of
from cxrlt_ray.runs.store import REFIT, Trial


def seconds_of(trial: Trial) -> float | None:
    """How long a trial took, or has taken so far by its epochs' records; None where that is not known."""
    record = trial.record
    if record.began is not None and record.ended is not None:
        return record.ended - record.began
    return sum(record.seconds.values()) if record.seconds else None


def gflops_of(facts: Facts) -> dict[str, float]:
    """GFLOPs to score an image with each trial, by name, all its checkpoints together; without those not known.

    Those of a trial whose record lacks them are counted on torch's meta device, for which torch is imported.
    """
    known: dict[str, float] = {}
    for trial in facts.trials:
        if trial.record.config is not None and trial.record.findings and trial.record.stage >= 0:
            try:
                known[trial.name] = _flops(trial, facts.files.get(trial.name, {})) / 1e9
            except (CxrltError, ImportError, RuntimeError, ValueError, KeyError):
                continue  # a backbone that this machine cannot build
    return known


def _flops(trial: Trial, files: dict[str, int]) -> float:
    folders = {path.partition("/")[0] for path in files if path.endswith("/model.safetensors")}
    models = 1 if REFIT in folders else sum(folder.startswith("fold-") for folder in folders)
    return flops_of(trial) * max(models, 1)
