"""What a file of pseudo-labels says of its teacher: who made them, of what, and which subjects the teacher saw.

The record is in the file's own metadata and goes with it into the student's run. Subjects are kept as salted hashes, by
which can be computed whether a student would be judged on subjects that its teacher saw, wherever the teacher's run is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from cxrlt_ray.config import Config
from cxrlt_ray.data.fingerprints import HashedSet
from cxrlt_ray.errors import UsageError

VERSION = 2
EVERY = -1  # the fold of subjects on whom all folds' models trained
Weights = Literal["mean", "chosen"]
Values = Literal["soft", "hard", "raw"]


class TeacherMember(Config):
    """A trial of the teacher, and the fingerprints of the checkpoints that scored, by name."""

    trial: str
    checkpoints: dict[str, str]


class Teacher(Config):
    """The teacher of a file of pseudo-labels.

    run: its URI; fingerprint: of the run's manifest. weights: mean: of the members' probabilities; chosen: the
    ensemble's own, which validation chose. values: soft: calibrated probabilities; hard: 1 or 0 by thresholds, of the
    share `keep` of the cells; raw: as the teacher scored. folds: 0, or the folds of training subjects, each with
    a teacher of its own. trained_on: subjects who trained a member, by the fold whose teacher they did not train, or
    EVERY. chosen_on: those whose labels chose the weights, None for none. calibrated_on: the split whose
    predictions, out-of-fold with folds, were calibrated against its labels; None for raw values. images: how many were
    scored, by cohort. transductive: test images among them. earlier: the teacher whose pseudo-labels this one's run
    learnt, and who taught that one in turn: what they saw went into these labels, too.
    """

    version: int = VERSION
    key: str
    run: str
    fingerprint: str
    ensemble: str
    weights: Weights
    values: Values
    keep: float | None = None
    findings: tuple[str, ...]
    folds: int = 0
    members: tuple[TeacherMember, ...]
    trained_on: dict[int, HashedSet]
    chosen_on: HashedSet | None = None
    calibrated_on: str | None = None
    images: dict[str, int]
    transductive: bool = False
    earlier: Teacher | None = None

    @property
    def provenance(self) -> str:
        """A line for the records of what was trained on these pseudo-labels."""
        what = f"{self.values} pseudo-labels {self.key} by the {self.weights} of {len(self.members)} members"
        return f"{what} of ensemble {self.ensemble} of {self.run}" + (", TRANSDUCTIVE" if self.transductive else "")

    def saw(self, subjects: Iterable[str], fold: int | None = None) -> np.ndarray:
        """Which of N subjects trained the teacher of `fold`, or one who taught it; None: any fold's. bool [N]."""
        names = list(subjects)
        saw = np.zeros(len(names), bool)
        for left_out, known in self.trained_on.items():
            if fold is None or left_out != fold:
                saw |= known.holds(names)
        if self.earlier is not None:  # whose fold's students are this one's members of that fold, where both have it
            saw |= self.earlier.saw(names, fold if self.folds == self.earlier.folds else None)
        return saw

    def chose_by(self, subjects: Iterable[str]) -> np.ndarray:
        """Which of N subjects' labels chose the weights of this teacher, or of one who taught it: bool [N]."""
        names = list(subjects)
        chose = np.zeros(len(names), bool) if self.chosen_on is None else self.chosen_on.holds(names)
        return chose if self.earlier is None else chose | self.earlier.chose_by(names)


def parse_teacher(content: object, where: str) -> Teacher:
    """The record in the file `where`. Raises UsageError for one of another version, or that is damaged."""
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise UsageError(
            f"{where} has a record of its teacher of version {version}; this cxrlt_ray reads version {VERSION}: "
            "make the pseudo-labels anew by python -m cxrlt_ray.pseudo, or install the other one."
        )
    try:
        return Teacher.model_validate(content)
    except ValueError:
        raise UsageError(
            f"{where}: the record of its teacher is damaged: make the pseudo-labels anew by python -m cxrlt_ray.pseudo."
        ) from None
