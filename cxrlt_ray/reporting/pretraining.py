"""Lines on a pretraining: what it will take, and what it left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cxrlt_ray import cli
from cxrlt_ray.pretraining.plan import StagePlan
from cxrlt_ray.runs.pretrain_record import PretrainRecord


def plan_lines(stages: Sequence[StagePlan], images: int, workers: int, device: str) -> Iterator[str]:
    """The plan as lines. images: to train on."""
    for stage in stages:
        config = stage.config
        yield (
            f"  {config.objective} of {config.backbone} at {config.resolution} px: {stage.steps:,} steps of "
            f"{config.batch_size * config.accumulation * workers:,} images, {config.epochs:,} epochs of {images:,}"
        )
        time = cli.duration(stage.seconds)
        yield f"    about {time} on {workers} x {device}; rate {stage.source}, the objective's share guessed"
    numbers = max(stage.numbers for stage in stages)
    # a state: weights, two moments, and of objectives with a teacher one more copy
    state = cli.size(2 * 4 * 4 * numbers)
    yield f"  disk: backbone {cli.size(4 * numbers)}, state while it runs about {state}, beside the prepared images"
    yield f"  all in all about {cli.duration(sum(stage.seconds for stage in stages))}; nothing was started (--plan)"


def flags(record: PretrainRecord) -> Iterator[str]:
    """What whoever takes the weights must know."""
    if record.all_splits:
        yield (
            "Flagged: it was trained on more than the training splits of its cohorts (--splits): scores on their "
            "validation and test images promise too much."
        )
    if record.smoke:
        yield "Flagged: --smoke, a run in small, whose weights are of no use."


def summary_lines(record: PretrainRecord, weights: str) -> Iterator[str]:
    """What was left, and how it went."""
    ended = record.state if record.reason is None else f"{record.state}: {record.reason}"
    yield f"{record.method} {ended} after {record.steps:,} steps, {cli.duration(record.seconds)}"
    if record.curve:
        first, last = record.curve[0], record.curve[-1]
        yield f"  effective rank of the features: {first.effective_rank:.1f} -> {last.effective_rank:.1f}"
        if first.knn is not None and last.knn is not None:
            yield (
                f"  k-NN mAP on images kept for it: {cli.short(first.knn)} -> {cli.short(last.knn)} "
                f"(chance {cli.short(last.chance or 0.0)})"
            )
    yield from flags(record)
    yield f"Left: {weights}"
    yield f"  for a search space: `backbone: {record.config.backbone}` and `checkpoint: {weights}`"
