"""The challenge's tasks: which findings, in which order, and how a finding's rarity is named.

Counts and orders: those of the CXR-LT 2024 release (its CLASSES.txt and task files). Task 1 orders
Mass, Nodule, Normal; task 2 orders Mass, Normal, Nodule: address columns by name only.

CXR-LT 2026: 30 findings of PadChest in task 1, six that training does not label in task 2. Names and order are those of
its training table and of its participants' public code; the order of task 2's findings is unverified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxrlt_ray.config import Config, read_yaml, validate
from cxrlt_ray.data.column_names import OWN
from cxrlt_ray.errors import UsageError
from cxrlt_ray.privacy import unfit

TASK1 = (
    "Adenopathy",
    "Atelectasis",
    "Azygos Lobe",
    "Calcification of the Aorta",
    "Cardiomegaly",
    "Clavicle Fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged Cardiomediastinum",
    "Fibrosis",
    "Fissure",
    "Fracture",
    "Granuloma",
    "Hernia",
    "Hydropneumothorax",
    "Infarction",
    "Infiltration",
    "Kyphosis",
    "Lobar Atelectasis",
    "Lung Lesion",
    "Lung Opacity",
    "Mass",
    "Nodule",
    "Normal",
    "Pleural Effusion",
    "Pleural Other",
    "Pleural Thickening",
    "Pneumomediastinum",
    "Pneumonia",
    "Pneumoperitoneum",
    "Pneumothorax",
    "Pulmonary Embolism",
    "Pulmonary Hypertension",
    "Rib Fracture",
    "Round(ed) Atelectasis",
    "Subcutaneous Emphysema",
    "Support Devices",
    "Tortuous Aorta",
    "Tuberculosis",
)
TASK2 = (
    "Atelectasis",
    "Calcification of the Aorta",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged Cardiomediastinum",
    "Fibrosis",
    "Fracture",
    "Hernia",
    "Infiltration",
    "Lung Lesion",
    "Lung Opacity",
    "Mass",
    "Normal",
    "Nodule",
    "Pleural Effusion",
    "Pleural Other",
    "Pleural Thickening",
    "Pneumomediastinum",
    "Pneumonia",
    "Pneumoperitoneum",
    "Pneumothorax",
    "Subcutaneous Emphysema",
    "Support Devices",
    "Tortuous Aorta",
)
TASK3 = ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis")
ALL_FINDINGS = tuple(sorted(TASK1 + TASK3))
TASK1_2026 = (
    "Normal",
    "aortic elongation",
    "cardiomegaly",
    "pleural effusion",
    "Nodule",
    "atelectasis",
    "pleural thickening",
    "aortic atheromatosis",
    "Support Devices",
    "alveolar pattern",
    "fracture",
    "Hernia",
    "Emphysema",
    "azygos lobe",
    "Hydropneumothorax",
    "Kyphosis",
    "Mass",
    "Pneumothorax",
    "Subcutaneous Emphysema",
    "pneumoperitoneo",
    "vascular hilar enlargement",
    "vertebral degenerative changes",
    "hyperinflated lung",
    "interstitial pattern",
    "central venous catheter",
    "hypoexpansion",
    "bronchiectasis",
    "hemidiaphragm elevation",
    "sternotomy",
    "calcified densities",
)
TASK2_2026 = ("Scoliosis", "Osteopenia", "Bulla", "Infarction", "Adenopathy", "goiter")
NO_FINDING = ("normal", "no finding")  # in small letters: what says that no finding is there

HEAD, MEDIUM, TAIL = "head", "medium", "tail"
GROUPS = (HEAD, MEDIUM, TAIL)


@dataclass(frozen=True)
class Task:
    """A task of the challenge: `findings` in submission order, scored on the images of `scored_split`.

    id_column: what a submission calls its images' ids. Raises UsageError for a finding whose name a spreadsheet would
    take for a formula: it heads columns of submissions; and for one that is called as a column of the manifest.
    """

    name: str
    findings: tuple[str, ...]
    scored_split: str = "test"
    id_column: str = "dicom_id"

    def __post_init__(self) -> None:
        if wrong := [name for name in self.findings if unfit(name)]:
            raise UsageError(
                f"task {self.name}: finding {wrong[0]!r} begins with = + - or @, or has control characters: a "
                "spreadsheet would take it for a formula. Rename it."
            )
        if own := [name for name in self.findings if name in OWN]:
            raise UsageError(f"task {self.name}: '{own[0]}' is a column of the manifest, not a finding: rename it.")


class TaskFile(Config):
    """A user's own task: `findings: [...]`, and optionally `name`, `scored_split`."""

    findings: tuple[str, ...]
    name: str | None = None
    scored_split: str = "test"


CHALLENGE = {
    "task1": Task("task1", TASK1),
    "task2": Task("task2", TASK2),
    "task3": Task("task3", TASK3),
    "2026-task1": Task("2026-task1", TASK1_2026, id_column="ImageID"),
    "2026-task2": Task("2026-task2", TASK2_2026, id_column="ImageID"),
}
ZERO_SHOT = {"task3": "task1 or task2", "2026-task2": "2026-task1"}  # not labelled in training, and what is
TASK_HELP = f"{', '.join(CHALLENGE)}, auto (every finding of the data) or a YAML file"


def load_task(name: str, findings: tuple[str, ...] = ()) -> Task:
    """The task `name`: one of CHALLENGE, auto (then it is of the manifest's `findings`) or a YAML file.

    Raises UsageError for an unknown name, and for a file that repeats a finding or has none.
    """
    if name in CHALLENGE:
        return CHALLENGE[name]
    if name == "auto":
        return Task("auto", findings)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"no task '{name}': give one of {', '.join(CHALLENGE)}, auto, or the path of a YAML file.")
    content = validate(TaskFile, read_yaml(path), path)
    if not content.findings or len(set(content.findings)) < len(content.findings):
        raise UsageError(f"{path}: key 'findings' must list at least one finding, each once.")
    return Task(content.name or path.stem, content.findings, content.scored_split)


def normal_among(findings: Sequence[str]) -> int | None:
    """Which of `findings` says that there is none, whatever its letters' case: Normal or No Finding; None where none.

    >>> normal_among(("Mass", "No finding")), normal_among(("Mass",))
    (1, None)
    """
    return next((k for k, name in enumerate(findings) if name.lower() in NO_FINDING), None)


def rarity(targets: np.ndarray) -> list[str]:
    """Head (> 10 % of the labelled training images), medium (1 to 10 %) or tail (< 1 %), per finding.

    targets: int8 [N, C] of the training images, 1, 0 or -1 (not labelled). A finding that is
    nowhere labelled counts as tail. Bounds: CXR-LT 2024 (Lin et al.), section on long-tailed metrics.
    """
    labelled = (targets >= 0).sum(axis=0)
    share = (targets == 1).sum(axis=0) / np.maximum(labelled, 1)
    return [rarity_of(s) for s in share]


def rarity_of(share: float) -> str:
    """Head, medium or tail, as of `rarity`, of a finding's share of positives; tail for nan.

    >>> rarity_of(0.2), rarity_of(0.1), rarity_of(0.005)
    ('head', 'medium', 'tail')
    """
    return HEAD if share > 0.1 else MEDIUM if share >= 0.01 else TAIL
