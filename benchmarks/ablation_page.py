"""The page of benchmarks/ablations.py: for each dataset a table of differences to the baseline, and earlier tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.training.job import Images

ROUNDS = 1000  # of the bootstrap
COLUMNS = ["| | part | mAP | against the baseline | of tail findings | |", "|---|---|---|---|---|---|"]
Lines = dict[str, str]  # of a table, by the name of the row


@dataclass(frozen=True)
class System:
    """A line of the table: the part, and its test scores [N, C] by seed."""

    group: str
    name: str
    scores: list[np.ndarray]


def section_text(text: str, dataset: str) -> list[str]:
    """The lines of the dataset's section in the page's `text`; [] where there is none."""
    content = text.partition(f"## {dataset}\n")[2].partition("\n## ")[0].strip()
    return [f"## {dataset}", "", *content.splitlines(), ""] if content else []


def printed(text: str, dataset: str, baseline: str) -> list[Lines]:
    """The dataset's tables in the page's `text`, each with a line of its own for the row `baseline`."""
    tables = []
    for block in "\n".join(section_text(text, dataset)).split("\n\n"):
        lines = {line.split(" | ")[1].strip(): line for line in block.splitlines() if line.count(" | ") > 3}
        if baseline in lines:
            tables.append(lines)
    return tables


def lines_of(systems: list[System], images: Images, subject: np.ndarray, tail: np.ndarray) -> Lines:
    """A line a system, the baseline first. subject: [N]. tail: bool [C], which findings are rare."""
    from cxrlt_ray import cli
    from cxrlt_ray.evaluation import metrics
    from cxrlt_ray.evaluation.estimate import Estimate, Sample

    seeds = len(systems[0].scores)
    scores = [by_seed for system in systems for by_seed in system.scores]
    draws = metrics.bootstrap_ap(images.targets, scores, subject, rounds=ROUNDS, seed=0)
    draws = draws.reshape(len(systems), seeds, *draws.shape[1:])
    aps = [
        np.array([metrics.per_finding(images.targets, by_seed, which=("ap",))["ap"] for by_seed in system.scores])
        for system in systems
    ]
    sample = Sample.of(images.targets, subject)
    lines: Lines = {}
    for k, system in enumerate(systems):
        values = [metrics.macro(ap) for ap in aps[k]]
        cells = [system.group, system.name, f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"]
        if k == 0:
            lines[system.name] = f"| {' | '.join([*cells, '', '', ''])} |"
            continue
        differences = [metrics.means(draws[k, s]) - metrics.means(draws[0, s]) for s in range(seeds)]
        difference = np.mean(values) - np.mean([metrics.macro(ap) for ap in aps[0]])
        gain = Estimate.of_difference(float(difference), np.mean(differences, axis=0), sample)
        tail_gain = np.nanmean(aps[k][:, tail]) - np.nanmean(aps[0][:, tail]) if tail.any() else np.nan
        verdict = "within chance" if not gain.excludes_zero else "helps" if gain.value > 0 else "hurts"
        cells += [cli.gained(gain.value, gain.low, gain.high), f"{tail_gain:+.3f}" if tail.any() else "-", verdict]
        lines[system.name] = f"| {' | '.join(cells)} |"
    return lines


def section(
    dataset: str,
    manifest: Manifest,
    images: Images,
    findings: tuple[str, ...],
    systems: list[System],
    rows: list[str],
    before: list[Lines],
) -> list[str]:
    """The page's section of one dataset, whose test images are `images`.

    systems: those to show, the baseline first. rows: the names of all rows there are. before: the tables on the page.
    A row that is not among the systems keeps its line: beside ours where that table's baseline scored the same, else
    in that table.
    """
    from cxrlt_ray.data.tasks import rarity

    subject = manifest.table.set_index("image_id")["subject_id"].loc[images.image_id].to_numpy()
    kinds = np.array(rarity(manifest.of_split("train").targets(findings)))
    lines, baseline = lines_of(systems, images, subject, kinds == "tail"), systems[0].name
    same = next((table for table in before if table[baseline] == lines[baseline]), {})
    lines = {name: line for name in rows if (line := lines.get(name) or same.get(name))} | lines
    complete, others = set(lines), []
    for table in before:
        if names := [name for name in rows if table is not same and name in table and name not in complete]:
            others.append([table[baseline], *(table[name] for name in names)])
            complete |= set(names)
    present = (images.targets == 1).any(axis=0)
    prevalence = (images.targets == 1).mean(axis=0)[present].mean()
    counts = ", ".join(f"{(kinds == kind).sum()} {kind}" for kind in ("head", "medium", "tail"))
    train = int((manifest.table["split"] == "train").sum())
    page = [
        f"## {dataset}",
        "",
        f"{train:,} training and {len(images):,} test images of {len(np.unique(subject)):,} subjects, "
        f"{len(findings)} findings ({counts}), chance {prevalence:.3f}; {len(systems[0].scores)} seeds.",
        "",
        *COLUMNS,
        *lines.values(),
        "",
    ]
    for table_lines in others:
        page += ["Trained on another machine, where the same baseline scored differently; against that one:", ""]
        page += [*COLUMNS, *table_lines, ""]
    untrained = [name for name in rows if name not in complete]
    return [*page, *([f"Not trained yet: {'; '.join(untrained)}.", ""] if untrained else [])]
