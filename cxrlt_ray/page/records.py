"""What a page is drawn from: `report.json`, typed and versioned, read and written here alone."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from cxrlt_ray.evaluation.estimate import Estimate
from cxrlt_ray.runs.records import Record
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.finite import finite


class SectionFacts(BaseModel):
    """Base of what a section gathers. Numbers that are not known are None, never nan."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(SectionFacts):
    """A value with its 95 % interval; None where it, or its interval, is not known."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, estimate: Estimate) -> Self:
        """An estimate, whose unknown numbers are nan."""
        return cls.model_validate(finite({"value": estimate.value, "low": estimate.low, "high": estimate.high}))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is known and lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Report(Record):
    """`report.json`.

    kind: run or comparison. created: when it was gathered. sections: what each gathered, by its name, in the page's
    order. faults: why a section is missing, by name. absent: what a section that has nothing to show lacks. pictures:
    whose pictures are in it, a sentence for the page's top; empty where there are none.
    """

    VERSION: ClassVar[int] = 1

    kind: str = "run"
    title: str
    created: str
    software: str
    sections: dict[str, JsonValue] = Field(default_factory=dict)
    faults: dict[str, str] = Field(default_factory=dict)
    absent: dict[str, str] = Field(default_factory=dict)
    pictures: str = ""

    def write(self, store: Store, name: str) -> None:
        """Write the record, whole or not at all; keys without a value are null."""
        store.write_json(name, self.model_dump(mode="json"))
