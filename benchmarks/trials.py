"""The time between trials, scoring many members in one pass, and what makes a training step faster.

Turnaround: a sweep of small trials on the phantom, from one trial's end to the next one's first step. Scoring: 8
small members on 512 px shards and on shards of their own size, all at once against one by one, numbers compared.
Steps: channels_last, fused AdamW and torch.compile on this machine's processor.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cache import BUILD, images, manifest, shards
from report import options, publish, ratios, spread, turns

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from cxrlt_ray.data.shards import Shards
    from cxrlt_ray.ensembling.score import Scorer, StoredMember

SPACE = """
trials: 8
epochs: 1
parameters:
  backbone: {choices: [tf_efficientnet_lite0, test_resnet, test_convnext, test_efficientnet]}
  pretrained: [{when: {backbone: tf_efficientnet_lite0}, value: true}, {value: false}]
  resolution: 96
  lr: {low: 1e-3, high: 1e-2, log: true}
  augment: 0.3
"""


def turnaround() -> tuple[list[str], str]:
    """Where the time goes between trials of one process: a table, after a sweep."""
    from cxrlt_ray.sweep import SweepRequest, run

    storage = BUILD / "turnaround"
    storage.mkdir(parents=True, exist_ok=True)
    (storage / "space.yaml").write_text(SPACE)
    request = SweepRequest(
        task="task1", space=str(storage / "space.yaml"), storage=str(storage), name=f"t{int(time.time())}"
    )
    records = [trial.record for trial in run(request).trials()]
    parts: dict[str, list[float]] = {}
    for before, after in itertools.pairwise(records):
        seconds = after.seconds
        idle = after.began - before.ended
        for part, value in {
            "from a trial's end to the next one's start: last report, Tune, Optuna, the store, Train": idle,
            "manifest, model and its weights, optimizer": seconds["model"],
            "first batch": seconds["first_batch"] - seconds["model"],
            "first step": seconds["first_step"] - seconds["first_batch"],
            "turnaround": idle + seconds["first_step"],
        }.items():
            parts.setdefault(part, []).append(value)
    lines = ["| between trials of one process, s | median (least-most) |", "|---|---|"]
    lines += [f"| {part} | {spread(values, 2)} |" for part, values in parts.items()]
    return lines, spread(parts["turnaround"], 2)


def members(count: int, folder: Path) -> list[StoredMember]:
    """Small models of random weights, saved as trials save theirs."""
    import torch

    from cxrlt_ray import models
    from cxrlt_ray.ensembling.score import StoredMember
    from cxrlt_ray.training.inference import augmented_views

    kinds, findings = ("test_resnet", "test_convnext", "test_efficientnet", "test_vit"), tuple(map(str, range(40)))
    stored = []
    for k in range(count):
        torch.manual_seed(k)
        spec = models.ModelSpec(kinds[k % len(kinds)], 96, pretrained=False)
        path = folder / f"member-{k}"
        path.mkdir(parents=True, exist_ok=True)
        models.save(models.build(spec, 40), spec, findings, path)
        stored.append(StoredMember(augmented_views(96, 1.0), (str(path),), "auto", findings))
    return stored


def scoring(count: int, rounds: int) -> tuple[list[str], list[tuple]]:
    """All members in one pass against one by one, on `count` images: a table and rows."""
    from cxrlt_ray.ensembling.score import Scorer, _items

    stored = members(8, BUILD / "members")
    lines = [
        "| 8 members at 96 px, images/s | one by one | one pass | ratio | largest difference |",
        "|---|---|---|---|---|",
    ]
    rows = []
    for size in (512, 96):
        source, _ = shards(count, size)
        table = manifest(images(count, size)).table
        # as Ray Data hands them to an actor: a batch of one item
        items = [{key: [value] for key, value in item.items()} for item in _items(source, table)]
        scorers = [Scorer(source, [member]) for member in stored]
        scores: dict[str, np.ndarray] = {}
        work = {
            "one by one": scored_items(scorers, items, scores, "one by one"),
            "one pass": scored_items([Scorer(source, stored)], items, scores, "one pass"),
        }
        rates = turns(work, rounds)
        difference = np.abs(scores["one pass"] - scores["one by one"]).max()
        cells = (f"shards of {size} px", spread(rates["one by one"]), spread(rates["one pass"]))
        lines.append(f"| {' | '.join(cells)} | {ratios(rates['one pass'], rates['one by one'])} | {difference:g} |")
        work_name = f"score {count:,} images with 8 small members, {size} px shards"
        rows.append((work_name, "one by one", ratios(rates["one pass"], rates["one by one"]), "1.5"))
    whole = turns(
        {
            "one by one": whole_passes(source, table, [[member] for member in stored]),
            "one pass": whole_passes(source, table, [stored]),
        },
        2,
    )
    cells = (
        "as a user runs it, actors started, models loaded (96 px)",
        spread(whole["one by one"]),
        spread(whole["one pass"]),
    )
    lines.append(f"| {' | '.join(cells)} | {ratios(whole['one pass'], whole['one by one'])} | |")
    rows.append(
        ("the same as whole passes through Ray", "one by one", ratios(whole["one pass"], whole["one by one"]), "1.5")
    )
    return lines, rows


def scored_items(
    scorers: list[Scorer], items: list[dict], scores: dict[str, np.ndarray], name: str
) -> Callable[[], float]:
    """Images/s of scoring all items with each of the scorers in turn; scores[name] are then [N, M, C]."""

    def run() -> float:
        start = time.perf_counter()
        parts = [np.concatenate([scorer(item)["scores"] for item in items]) for scorer in scorers]
        scores[name] = np.concatenate(parts, axis=1)
        return len(scores[name]) / (time.perf_counter() - start)

    return run


def whole_passes(source: Shards, table: pd.DataFrame, groups: list[list[StoredMember]]) -> Callable[[], float]:
    """Images/s of `score` for each group of members in turn, through Ray, from nothing. table: of the manifest."""
    import tempfile

    from cxrlt_ray.ensembling.score import score
    from cxrlt_ray.storage import Store

    def run() -> float:
        start = time.perf_counter()
        for group in groups:
            with tempfile.TemporaryDirectory() as folder:
                score(Store(folder) / "work", (source,), group, table)
        return len(table) / (time.perf_counter() - start)

    return run


def steps(seconds: float, rounds: int) -> list[str]:
    """Training steps of small models as they are, and without what we add: a table."""
    import os

    import torch

    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # as a new machine compiles
    lines = [
        "| training steps, images/s | plain | channels_last | fused AdamW too | compiled too | s to compile |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("test_resnet", "test_convnext", "tf_efficientnet_lite0", "resnet18"):
        kinds = {"plain": (False, False), "channels_last": (True, False), "fused": (True, True)}
        work = {kind: _stepper(name, *options, compiled=False)[0] for kind, options in kinds.items()}
        start = time.perf_counter()
        try:
            compiled, _ = _stepper(name, True, True, compiled=True)
            compiling = f"{time.perf_counter() - start:.0f}"
            work["compiled"] = compiled
        except Exception as error:  # no C++ compiler, or a bug of the backend
            compiling = f"failed: {type(error).__name__}"
        rates = turns({kind: (lambda run=run: run(seconds)) for kind, run in work.items()}, rounds)
        cells = [spread(rates[kind]) for kind in kinds] + [spread(rates.get("compiled", [float("nan")]))]
        lines.append(f"| {name}, 96 px | {' | '.join(cells)} | {compiling} |")
    torch._dynamo.reset()
    return lines


def _stepper(
    name: str, channels_last: bool, fused: bool, compiled: bool
) -> tuple[Callable[[float], float], torch.nn.Module]:
    """Images/s of so many seconds of training steps, and the model that is trained."""
    import torch

    from cxrlt_ray import models

    model = models.build(models.ModelSpec(name, 96, pretrained=False), 40)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused, foreach=False)
    forward = torch.compile(model, dynamic=False) if compiled else model
    images, targets = torch.randint(0, 255, (32, 96, 96), dtype=torch.uint8), torch.zeros(32, 40)

    def step() -> None:
        torch.nn.functional.binary_cross_entropy_with_logits(forward(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()

    def run(seconds: float) -> float:
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            step()
            count += 32
        return count / (time.perf_counter() - start)

    return run, model


def main() -> None:
    args = options(__doc__, {"images": 2048, "rounds": 5}).parse_args()
    between, total = turnaround()
    scored, rows = scoring(args.images, args.rounds)
    rows.append(("from a trial's end to the next one's first step", "goal in s", f"{total} s", "2 s"))
    lines = [*between, "", *scored, "", *steps(2.0, max(2, args.rounds - 2))]
    publish("trials", "Trials", f": 2 cores; small models, {args.rounds} rounds in turn.", lines, args.write, rows)


if __name__ == "__main__":
    main()
