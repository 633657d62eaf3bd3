"""What a trial cost to train and costs to serve, as far as its record and its files say."""

from __future__ import annotations

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.page.facts import Facts
from cxrlt_ray.runs.store import REFIT, Trial


def seconds_of(trial: Trial) -> float | None:
    """How long a trial took, or has taken so far by its epochs' records; None where that is not known."""
    record = trial.record
    if record.began is not None and record.ended is not None:
        return record.ended - record.began
    return sum(record.seconds.values()) if record.seconds else None


def gflops_of(facts: Facts) -> dict[str, float]:
    """GFLOPs to score an image with each trial, by name, all its checkpoints together; without those not known.

    Counted on torch's meta device, for which torch is imported: figures of an earlier page are taken as they are.
    """
    known: dict[str, float] = {}
    for trial in facts.trials:
        if trial.name in facts.costs:
            known[trial.name] = facts.costs[trial.name]
        elif trial.record.config is not None and trial.record.findings and trial.record.stage >= 0:
            try:
                known[trial.name] = _flops(trial, facts.files.get(trial.name, {})) / 1e9
            except (CxrltError, ImportError, RuntimeError, ValueError, KeyError):
                continue  # a backbone that this machine cannot build
    return known


def _flops(trial: Trial, files: dict[str, int]) -> float:
    from cxrlt_ray.models import flops

    folders = {path.partition("/")[0] for path in files if path.endswith("/model.safetensors")}
    models = 1 if REFIT in folders else sum(folder.startswith("fold-") for folder in folders)
    return flops(trial.config.spec(), len(trial.record.findings)) * max(models, 1)
