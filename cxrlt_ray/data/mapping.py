"""Other cohorts' findings by the names of CXR-LT: cohorts/NAME.yaml, which anyone can correct.

    findings:                       # left as the reader names it, right one of the 45, or several
      Effusion: Pleural Effusion
      Rib fracture: [Rib Fracture, Fracture]
    not_labelled:                   # optional: why a finding that one might expect is missing
      Normal: its No Finding means something else
    reader: table                   # optional: the format, where it is not called as the file is
    synthetic: true                 # optional: the images are generated; without findings, each keeps its name

Where several findings of the source map to one: any positive is 1, all known negatives are 0, anything else is
null. Findings that a mapping does not reach are null.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, field_validator

from cxrlt_ray import config
from cxrlt_ray.data.manifest import MAIN, META, Manifest
from cxrlt_ray.data.readers import all_readers
from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.errors import UsageError

FOLDER = "cohorts"


def _nearest(text: str, names: Iterable[str]) -> str:
    """The up to three of `names` that read most like `text`, the nearest first."""
    lower = {name.lower(): name for name in names}
    return ", ".join(lower[match] for match in difflib.get_close_matches(text.lower(), lower, 3, 0.3)) or "none"


def _target(name: Any) -> str:
    if name not in ALL_FINDINGS:
        raise ValueError(f"'{name}' is none of CXR-LT's 45 findings; nearest: {_nearest(str(name), ALL_FINDINGS)}")
    return name


def _targets(value: Any) -> tuple[str, ...]:
    names = value if isinstance(value, list | tuple) else [value]
    if not names:
        raise ValueError("an empty list: name a finding or leave the line out")
    return tuple(map(_target, names))


def _source(name: str, info: ValidationInfo) -> str:
    known = all_readers()[info.data["reader"]].findings if "reader" in info.data else None
    if known is not None and name not in known:
        raise ValueError(f"reader {info.data['reader']} has no such finding; nearest: {_nearest(name, known)}")
    return name


def _reader(name: str) -> str:
    if name not in all_readers():
        raise ValueError(f"no reader of that name; there are: {', '.join(all_readers())}")
    return name


class CohortMapping(config.Config):
    """A file of cohorts/: what each finding that `reader` finds is called in CXR-LT.

    name: what the cohort is called in the manifest. synthetic: its images are generated. findings: source -> targets;
    {} for generated images that are labelled as the data is that they were made for. not_labelled: target -> why not.
    """

    name: str
    reader: Annotated[str, AfterValidator(_reader)]
    synthetic: bool = False
    findings: dict[Annotated[str, AfterValidator(_source)], Annotated[tuple[str, ...], PlainValidator(_targets)]]
    not_labelled: dict[Annotated[str, AfterValidator(_target)], str] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name == MAIN or not name or "/" in name or "=" in name:
            raise ValueError(f"a cohort is not called so: without / and =, and not {MAIN}, the data's own")
        return name

    @field_validator("findings")
    @classmethod
    def _is_something(cls, findings: dict[str, tuple[str, ...]], info: ValidationInfo) -> dict[str, tuple[str, ...]]:
        unlabelled = all_readers()[info.data.get("reader", "table")].findings == ()
        if not findings and not unlabelled and not info.data.get("synthetic"):
            raise ValueError("map at least one finding")
        return findings

    @property
    def reached(self) -> frozenset[str]:
        """The findings of CXR-LT that the cohort labels."""
        if not self.findings:
            return frozenset(ALL_FINDINGS)
        return frozenset(target for targets in self.findings.values() for target in targets)

    def named_as(self, findings: Collection[str]) -> CohortMapping:
        """The mapping to data with `findings`: each is itself where generated images keep their names."""
        return self if self.findings else self.model_copy(update={"findings": {name: (name,) for name in findings}})


def load_mapping(name: str) -> CohortMapping:
    """The mapping `name`: a path, else ./cohorts/NAME.yaml, else the shipped one.

    Raises UsageError where there is none, and for a finding that the reader or CXR-LT does not know, with the
    file, the key, the value and the nearest names.
    """
    path = config.find(FOLDER, name)
    content = config.read_yaml(path)
    mapping = config.validate(CohortMapping, {"name": path.stem, "reader": path.stem, **content}, path)
    both = sorted(mapping.reached & set(mapping.not_labelled))
    if both:
        raise UsageError(f"{path}: '{both[0]}' stands under both findings and not_labelled: take one out.")
    return mapping


def map_findings(table: pd.DataFrame, mapping: CohortMapping, findings: Collection[str]) -> pd.DataFrame:
    """Int8 columns [N] of `findings`, CXR-LT's, from `table`'s, Int8 as the source names them; null where not labelled.

    >>> source = pd.DataFrame({"rib": [1, 0, None], "clavicle": [None, 0, 0]}, dtype="Int8")
    >>> both = CohortMapping(name="x", reader="table", findings={"rib": "Fracture", "clavicle": "Fracture"})
    >>> map_findings(source, both, ["Fracture"])["Fracture"].tolist()
    [1, 0, <NA>]
    """
    columns = {}
    for finding in findings:
        sources = [name for name, targets in mapping.findings.items() if finding in targets]
        codes = np.full((len(sources) or 1, len(table)), -1, np.int8)
        for row, name in enumerate(sources):
            if name in table:
                codes[row] = table[name].fillna(-1).to_numpy(np.int8)
        positive = (codes == 1).any(axis=0)
        known = positive | (codes == 0).all(axis=0)
        columns[finding] = pd.arrays.IntegerArray(positive.astype(np.int8), ~known)
    return pd.DataFrame(columns, index=table.index)


def in_cxr_lt(findings: Collection[str], reader: str) -> dict[str, str]:
    """Which of CXR-LT's findings those of a format are, as far as they are any: finding -> CXR-LT's, one for one.

    One of CXR-LT's own names is itself. Any other is what cohorts/READER.yaml maps it to, if to that alone, and if no
    other is mapped to that alone: what is mapped to several is a kind of each.

    >>> in_cxr_lt(["Nodule", "aortic elongation", "alveolar pattern", "sternotomy"], "cxrlt2026")
    {'Nodule': 'Nodule', 'aortic elongation': 'Tortuous Aorta'}
    """
    same = {name: name for name in findings if name in ALL_FINDINGS}
    if reader not in config.names(FOLDER):
        return same
    alone = {source: targets[0] for source, targets in load_mapping(reader).findings.items() if len(targets) == 1}
    targets = list(alone.values())
    others = {name: alone[name] for name in findings if name in alone and targets.count(alone[name]) == 1}
    return {name: same.get(name) or others[name] for name in findings if name in same or name in others}


def posing(manifest: Manifest, name: str, task_findings: Collection[str]) -> Manifest:
    """`manifest`, labelled in CXR-LT's findings, as cohort `name` would label it: null where it does not label.

    The result has the findings `task_findings`, in their order; one that is not in the manifest is null.
    """
    reached = load_mapping(name).reached
    labels = {
        finding: manifest.table[finding]
        if finding in reached and finding in manifest.table
        else pd.array([pd.NA] * len(manifest.table), "Int8")
        for finding in task_findings
    }
    meta = manifest.table[[column for column in META if column in manifest.table]]
    return replace(manifest, table=meta.assign(**labels), findings=tuple(task_findings))
