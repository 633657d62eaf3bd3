"""Selection among more trials than memory holds: greedy's first pass over all of them against the plain path.

selection.py --trials N starts this. Exactness and time: both ways in processes of their own, weights by all subjects
and without each of 5 folds compared bit for bit; the plain way holds all predictions and runs where they take less than
PLAIN bytes. Loss: the default ensemble file chosen on one half of the subjects and scored on the other, among all
trials, among a shortlist by greedy's first pass, and among the foremost by their own AP. Trials are drawn as in
selection.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers import peak_bytes
from report import Row
from selection import drawn

FOLDS = 5
PLAIN = 6e9  # bytes of predictions up to which the plain way is run as well
Result = dict[str, Any]


def first_pass(trials: int, images: int, findings: int, rounds: int, seed: int, out: str) -> Result:
    """The trials' scores written to a scratch file one by one, then greedy's paths from there."""
    from cxrlt_ray.ensembling.scratch import scratch_scores
    from cxrlt_ray.selection.first_pass import follow

    targets, groups, member = drawn(images, findings, seed)
    with scratch_scores(trials, images, findings) as scratch:
        writing = 0.0
        for m in range(trials):
            scores = member(m)
            start = time.perf_counter()
            scratch.add(scores)
            writing += time.perf_counter() - start
        start, worked = time.perf_counter(), time.process_time()
        paths = follow(scratch.finding, sets_of(targets, groups, seed), trials, rounds)
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
    np.save(out, np.stack([paths.weights(s) for s in range(FOLDS + 1)]))
    earliest = paths.earliest()
    result = {"write": writing, "select": seconds, "cpu": worked, "memory": peak_bytes()}
    return result | {"picked": int((earliest < rounds).sum())}


def plain(trials: int, images: int, findings: int, rounds: int, seed: int, out: str) -> Result:
    """All predictions in memory, one fit after the other."""
    from cxrlt_ray.selection.honest import side_by_side
    from cxrlt_ray.selection.registry import SELECTORS

    targets, groups, member = drawn(images, findings, seed)
    predictions = side_by_side(np.stack([member(m) for m in range(trials)]))
    start, worked = time.perf_counter(), time.process_time()
    greedy = SELECTORS["greedy"].__wrapped__  # type: ignore[attr-defined]
    weights = [greedy(predictions, labels, groups, rounds=rounds) for labels in sets_of(targets, groups, seed)]
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    np.save(out, np.stack(weights))
    return {"write": 0.0, "select": seconds, "cpu": worked, "memory": peak_bytes()}


def sets_of(targets: np.ndarray, groups: np.ndarray, seed: int) -> list[np.ndarray]:
    """The labels, and those without each fold of the subjects."""
    from cxrlt_ray.data.splits import assign_folds

    fold = assign_folds(targets, groups, FOLDS, seed)
    return [targets, *(np.where((fold == k)[:, None], np.int8(-1), targets) for k in range(FOLDS))]


def losses(trials: int, images: int, findings: int, most: int, rounds: int, seed: int) -> list[tuple[str, float]]:
    """Test mAP of the default ensemble file among all trials and among a shortlist of each kind."""
    from cxrlt_ray.ensembling.ensemble_file import load_ensemble
    from cxrlt_ray.ensembling.shortlist import by_ap
    from cxrlt_ray.evaluation import metrics
    from cxrlt_ray.selection.average_precision import precisions
    from cxrlt_ray.selection.first_pass import follow
    from cxrlt_ray.selection.honest import choose, combine, side_by_side

    targets, groups, member = drawn(2 * images, findings, seed)
    predictions = side_by_side(np.stack([member(m) for m in range(trials)]))
    chosen_on = groups % 2 == 0
    seen, unseen = predictions[:, chosen_on], predictions[:, ~chosen_on]
    labels, subjects = targets[chosen_on], groups[chosen_on]
    (method,) = load_ensemble("greedy")[1].methods()
    place = by_ap(precisions(seen, labels))
    paths = follow(lambda c: seen[:, :, c], sets_of(labels, subjects, seed), trials, rounds)
    parts = {
        f"all {trials:,} trials": np.arange(trials),
        f"{most} by greedy's first pass": np.sort(np.lexsort([place, paths.earliest()])[:most]),
        f"{most} by their own AP": np.flatnonzero(place < most),
    }
    rows = []
    for title, part in parts.items():
        weights = choose(method, seen[part], labels, subjects, seed)
        ap = metrics.per_finding(targets[~chosen_on], combine(unseen[part], weights), which=("ap",))["ap"]
        rows.append((title, metrics.macro(ap)))
    return rows


def process(kind: str, *arguments: object) -> Result:
    """A way in a process of its own."""
    command = [sys.executable, __file__, kind, *map(str, arguments)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: Result = json.loads(output.splitlines()[-1])
    print(kind, result, file=sys.stderr, flush=True)
    return result


def many(args: argparse.Namespace, folder: Path) -> tuple[list[str], list[Row]]:
    """The tables of both ways and of the loss, lines of markdown, and a row of the summary."""
    size = (args.trials, args.images, args.findings, args.rounds, args.seed)
    process("first", 40, 400, 2, 4, 0, folder / "compiles.npy")
    process("plain", 40, 400, 2, 4, 0, folder / "compiles.npy")
    ours = process("first", *size, folder / "first.npy")
    raw = 4 * args.trials * args.images * args.findings
    lines = [
        "| way | scores to the scratch file, s | greedy, all and 5 folds, s | processor time, s | peak memory, GiB | "
        "trials ever picked |",
        "|---|---|---|---|---|---|",
        f"| first pass, a finding at a time | {ours['write']:,.0f} | {ours['select']:,.1f} | "
        f"{ours['cpu']:,.1f} | "
        f"{ours['memory'] / 2**30:.2f} | {ours['picked']:,} |",
    ]
    if raw <= PLAIN:
        other = process("plain", *size, folder / "plain.npy")
        if not np.array_equal(np.load(folder / "first.npy"), np.load(folder / "plain.npy")):
            sys.exit("the first pass's weights are not the plain path's: its time counts for nothing.")
        lines += [
            f"| all predictions in memory | - | {other['select']:,.1f} | {other['cpu']:,.1f} | "
            f"{other['memory'] / 2**30:.2f} | - |",
            "",
            "Weights by all subjects and without each fold are equal, bit for bit; "
            f"{other['cpu'] / ours['cpu']:.2f} times the plain path's speed by processor time.",
        ]
    if args.loss:
        lines += ["", "| `ensembles/greedy.yaml` chosen among | mAP on other subjects |", "|---|---|"]
        for title, value in losses(args.loss, args.loss_images, args.findings, args.most, 20, args.seed):
            lines.append(f"| {title} | {value:.4f} |")
    seconds = ours["write"] + ours["select"]
    summary = f"{seconds:,.0f} s, {ours['memory'] / 2**30:.1f} GiB"
    work = f"greedy among {args.trials:,} trials of {args.images:,} x {args.findings}, {args.rounds} rounds, 5 folds"
    return lines, [(work, "goal", summary, "600 s, 4 GiB")]


if __name__ == "__main__":
    kind, *numbers, path = sys.argv[1:]
    print(json.dumps({"first": first_pass, "plain": plain}[kind](*map(int, numbers), path)))
