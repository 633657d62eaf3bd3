"""How far labels that were given beside a cohort's agree with its own: as a run's record keeps it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class AgreementRate(BaseModel):
    """A rate with its 95 % interval by subject; None where it is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | None = None
    low: float | None = None
    high: float | None = None


class LabelAgreement(BaseModel):
    """Of one finding, on studies that both labellings know.

    scored: these are the studies that the cohort sets apart to be scored; else those of training and validation.
    own, given, both: positive by the cohort, by the given labels, by both. f1: of the given labels, the cohort's taken
    as the truth. kappa: Cohen's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    finding: str
    scored: bool
    studies: int
    own: int
    given: int
    both: int
    f1: AgreementRate
    kappa: AgreementRate
