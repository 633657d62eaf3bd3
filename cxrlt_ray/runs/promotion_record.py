"""`promotion.json`: what was decided of a trial at each rung where its worth to the ensemble was judged.

It lies beside the trial's record, which is for the trial's own process to write, and makes a resumed sweep decide as it
had. The predictions that were compared lie in `rungs/EPOCHS.parquet`.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from cxrlt_ray.runs.records import Record

FILE = "promotion.json"


class RungRecord(BaseModel):
    """A decision.

    rung: in epochs. score: the best mAP so far. worth: the cross-fitted gain in mAP of an ensemble of the others by
    the trial; None where it is not known. predictions: whether those that were compared are kept. others: how many
    trials were at the rung before it; ahead: how many of them were better.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rung: int
    score: float
    worth: float | None = None
    predictions: bool = False
    others: int
    ahead: int
    promoted: bool


class PromotionRecord(Record):
    """The decisions on one trial, as they were made."""

    VERSION: ClassVar[int] = 1

    rungs: list[RungRecord] = Field(default_factory=list)


def rung_file(rung: int) -> str:
    """The file, in the trial's directory, of the predictions that were compared at a rung."""
    return f"rungs/{rung}.parquet"
