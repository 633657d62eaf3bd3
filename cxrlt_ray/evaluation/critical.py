"""Findings that must not be missed: evaluation/critical.yaml, or a file of one's own.

findings: [Pneumothorax, Pneumoperitoneum]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator

from cxrlt_ray.config import Config, read_yaml, validate
from cxrlt_ray.data.column_names import folded
from cxrlt_ray.errors import UsageError

BUILT_IN = Path(__file__).with_name("critical.yaml")


class CriticalFindings(Config):
    """The file: names of findings, in any case and spacing."""

    findings: tuple[str, ...] = Field(min_length=1)

    @field_validator("findings")
    @classmethod
    def _check(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        forms = [folded(name) for name in names]
        if not all(forms):
            raise ValueError("a finding needs a name")
        if repeated := [name for k, name in enumerate(names) if forms[k] in forms[:k]]:
            raise ValueError(f"'{repeated[0]}' stands twice")
        return names


def critical_findings(findings: Sequence[str], path: str | None = None) -> tuple[str, ...]:
    """Those of `findings` that are critical, in their order; by the file `path`, or the built-in list.

    Raises UsageError where the file is wrong, where `path` names what is none of `findings`, and where none is left.
    """
    file = Path(path) if path else BUILT_IN
    named = validate(CriticalFindings, read_yaml(file), file).findings
    own = {folded(name): name for name in findings}
    if path and (unknown := [name for name in named if folded(name) not in own]):
        raise UsageError(f"{file}: '{unknown[0]}' is none of the findings here: {', '.join(findings)}.")
    meant = {folded(name) for name in named}
    critical = tuple(name for name in findings if folded(name) in meant)
    if not critical:
        raise UsageError(
            f"none of the findings here is in {file.name}, the list of critical findings: name yours in a YAML file "
            "(`findings: [...]`) and give it by --critical."
        )
    return critical
