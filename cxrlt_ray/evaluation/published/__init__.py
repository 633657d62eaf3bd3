"""What the CXR-LT 2024 paper reports, to set own figures beside: its teams' scores, its labellers' precision.

Source: Lin et al., "CXR-LT 2024: A MICCAI challenge on long-tailed, multi-label, and zero-shot disease
classification from chest X-ray", Medical Image Analysis 2025 (arXiv:2506.07984); teams by its letters.

    teams.csv      macro and micro rows: mAP, mAUROC, mF1 and head / medium / tail of the main tables, micro F1
                   and FNR of the supplement's
    taskN_ap.csv   AP per finding, the supplement's tables 1 to 9
    label_precision.csv   precision of rule-based and GPT-4o labels on 406 hand-labelled studies, table 8

The paper's head / medium / tail holds 9 / 14 / 16 findings, ours 9 / 15 / 16 (tasks.rarity); its macro F1 of
team E in task 2 is .265 in the main table and .260 in the supplement; the findings of teams H and I in task 3
average .120 and .085 where their mAP is given as .116 and .110.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxrlt_ray.data.tasks import Task

FOLDER = Path(__file__).parent
TEST_IMAGES = {"task1": 78_946, "task2": 406, "task3": 78_946}
NAN = float("nan")


@dataclass(frozen=True)
class Published:
    """Results on a task's test set, in [0, 1]: `scores` {metric: {team: value}}, `ap` {team: [C] in task order}."""

    scores: dict[str, dict[str, float]]
    ap: dict[str, np.ndarray]

    @property
    def teams(self) -> list[str]:
        """The teams' letters, best mAP first."""
        return list(self.ap)


def published(task: Task) -> Published | None:
    """The paper's results on `task`; None where the paper has no such task."""
    if task.name not in TEST_IMAGES:
        return None
    rows = [row for row in _rows("teams.csv") if row["task"] == task.name]
    findings = {row["finding"]: row for row in _rows(f"{task.name}_ap.csv")}
    if set(findings) != set(task.findings):
        return None  # a user's own task by that name
    metrics = [name for name in rows[0] if name not in ("task", "team")]
    return Published(
        {name: {row["team"]: float(row[name] or NAN) for row in rows} for name in metrics},
        {row["team"]: np.array([float(findings[f][f"team_{row['team']}"]) for f in task.findings]) for row in rows},
    )


def not_comparable(task: Task, images: int, phantom: bool) -> str | None:
    """Why the paper's results say nothing beside scores on `images` images of this cohort; None if they do."""
    if phantom:
        return "This cohort is the phantom, drawn chests: the paper's teams are left out, they were scored on patients."
    if images != TEST_IMAGES[task.name]:
        return (
            f"The paper's teams are left out: they were scored on the release's {TEST_IMAGES[task.name]:,} test images "
            f"of {task.name}, not on these {images:,}."
        )
    return None


def published_label_precision() -> dict[str, dict[str, float]]:
    """Table 8: labeller -> finding -> precision, of 26 findings; its "mean" is the plain mean over them."""
    rows = _rows("label_precision.csv")
    names = {"paper: rules": "rule_based", "paper: GPT-4o": "gpt_4o"}
    return {name: {row["finding"]: float(row[column]) for row in rows} for name, column in names.items()}


def _rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(newline="") as file:
        return list(csv.DictReader(file))
