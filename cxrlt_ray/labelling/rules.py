"""Rule files: one YAML a finding in label_rules/, which a radiologist reads and corrects (docs/labels.md).

A folder of the user's own needs only the files that differ: the others are those of the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from cxrlt_ray.config import PACKAGE, Config, read_yaml, validate
from cxrlt_ray.data.column_names import is_no_finding
from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.phrases import check_phrase
from cxrlt_ray.privacy import unfit

FOLDER = "label_rules"
FURTHER = "further"  # a folder in it: findings of other challenges, which are read only where they are asked for
CONTEXT = "context"  # the file of what denies a finding or makes it uncertain, beside those of findings
POSITIVE, NEGATIVE, UNCERTAIN = 1, 0, -1  # CheXpert's convention; a finding that is not mentioned has no label
POLICIES = ("keep", "one", "zero", "null")  # what becomes of uncertain
Group = Literal["cardiopulmonary", "bones", "devices"]


class Example(Config):
    """A text and the label that the finding must get in it: 1, 0, -1 (uncertain) or null (not mentioned)."""

    text: str
    label: Literal[1, 0, -1] | None


class FindingRule(Config):
    """The rules of one finding.

    definition: what the finding is, in words that a radiologist would sign. phrases: what names it. excluded: phrases
    that hold one of `phrases` and mean something else. normal: statements that deny it. implies: findings that are
    there with it. uncertain: what `--uncertain policy` makes of -1. group: whether it is of heart, lungs and pleura, of
    bones, or a device. others: for Normal alone, phrases for what is none of the findings and still not normal.
    """

    finding: str
    definition: str
    group: Group = "cardiopulmonary"
    phrases: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    normal: tuple[str, ...] = ()
    implies: tuple[str, ...] = ()
    uncertain: Literal["keep", "one", "zero", "null"] = "keep"
    others: Mapping[Group, tuple[str, ...]] = Field(default_factory=dict)
    examples: tuple[Example, ...] = ()

    @field_validator("definition")
    @classmethod
    def _in_one_line(cls, text: str) -> str:
        return " ".join(text.split())


class Trigger(Config):
    """Phrases that change what a finding's mention means.

    means: negative, uncertain, blank (no statement on this image), positive (shields from what stands before it), end
    (of the scope of all triggers) or pass (nothing, and what it holds neither). position: where it stands, seen from
    the mention. reach: words at most between it and the mention.
    """

    means: Literal["negative", "uncertain", "blank", "positive", "end", "pass"]
    position: Literal["before", "after", "both"] = "before"
    reach: int = 60
    phrases: tuple[str, ...]


class ContextRule(Config):
    """context.yaml: triggers in groups, by a name that the evidence shows.

    ordinary: phrases of sentences that say that things are as they should be, or nothing of the image.
    """

    triggers: dict[str, Trigger]
    ordinary: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rules:
    """All rules, and how they are applied.

    names: the findings asked for, in their order; others are read, too, since they imply these or block Normal.
    blockers: groups whose findings keep a report from being Normal. hierarchy: whether CheXpert's holds.
    """

    every: tuple[FindingRule, ...]
    names: tuple[str, ...]
    context: ContextRule
    blockers: frozenset[Group] = frozenset({"cardiopulmonary"})
    hierarchy: bool = False

    def __getitem__(self, finding: str) -> FindingRule:
        return next(rule for rule in self.every if rule.finding == finding)

    @property
    def findings(self) -> tuple[FindingRule, ...]:
        """The rules of the findings asked for."""
        return tuple(self[name] for name in self.names)


def load_rules(
    folder: str | Path | None = None,
    findings: Sequence[str] | None = None,
    blockers: Iterable[Group] = ("cardiopulmonary",),
    hierarchy: bool = False,
) -> Rules:
    """The rules of `findings` (default: all 45, and any further that `folder` holds), by `folder` before the package's.

    blockers, hierarchy: as of Rules.
    Raises UsageError, with every mistake, for a file that is wrong and for a finding that has no file.
    """
    files = _files(folder)
    context = files.pop(CONTEXT, None)
    if context is None:
        raise UsageError(f"no {FOLDER}/{CONTEXT}.yaml: it says what denies a finding. Install the package anew.")
    by_name = _by_name(files.values())
    by_name |= {name: rule for name, rule in _further().items() if name in (findings or ()) and name not in by_name}
    _check_implied(by_name)
    known = [*(name for name in ALL_FINDINGS if name in by_name), *sorted(set(by_name) - set(ALL_FINDINGS))]
    asked = findings if findings is not None else known
    if unknown := [name for name in asked if name not in by_name]:
        names = dict.fromkeys([*known, *_further()])
        raise UsageError(f"no rules for finding '{unknown[0]}': there are rules for {', '.join(names)}.")
    triggers = validate(ContextRule, read_yaml(context), context)
    groups = {name: trigger.phrases for name, trigger in triggers.triggers.items()}
    _check_phrases({**groups, "ordinary": triggers.ordinary}, context)
    every = tuple(by_name[name] for name in known)
    return Rules(every, tuple(dict.fromkeys(asked)), triggers, frozenset(blockers), hierarchy)


def ruled_findings(folder: str | Path | None = None) -> tuple[str, ...]:
    """All findings that rules can be asked for: of the package, those of other challenges too, and of `folder`."""
    return tuple(dict.fromkeys([*load_rules(folder).names, *_further()]))


def _further() -> dict[str, FindingRule]:
    files = {path.stem: path for place in _folders() for path in sorted((place / FURTHER).glob("*.yaml"))}
    return _by_name(files.values())


def _by_name(files: Iterable[Path]) -> dict[str, FindingRule]:
    by_name: dict[str, FindingRule] = {}
    for path in files:
        rule = _finding_rule(read_yaml(path), path)
        if rule.finding in by_name:
            raise UsageError(f"{path}: finding '{rule.finding}' has another file in the same folder: keep one.")
        by_name[rule.finding] = rule
    return by_name


def _folders() -> list[Path]:
    """The package's rules, in a checkout and where it is installed."""
    return [PACKAGE.parent / FOLDER, PACKAGE / FOLDER]


def _files(folder: str | Path | None) -> dict[str, Path]:
    """The rule files by their names; of a name in two folders the user's own."""
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"--rules {folder} is not a folder: give one with a YAML file a finding.")
    folders = [*_folders(), *([Path(folder)] if folder is not None else [])]
    return {path.stem: path for place in folders for path in sorted(place.glob("*.yaml"))}


def _finding_rule(content: dict[str, Any], path: Path) -> FindingRule:
    rule = validate(FindingRule, content, path)
    if unfit(rule.finding) or is_no_finding(rule.finding):
        raise UsageError(
            f"{path}: finding '{rule.finding}' begins with = + - or @, or is called as a column of ids: rename it."
        )
    keys = {"phrases": rule.phrases, "excluded": rule.excluded, "normal": rule.normal}
    _check_phrases(keys | {f"others.{group}": phrases for group, phrases in rule.others.items()}, path)
    return rule


def _check_phrases(keys: Mapping[str, Sequence[str]], path: Path) -> None:
    mistakes = []
    for key, phrases in keys.items():
        for phrase in phrases:
            try:
                check_phrase(phrase)
            except UsageError as error:
                mistakes.append(f"key '{key}': {error}")
    if mistakes:
        raise UsageError(f"{path}: {' '.join(mistakes)}")


def _check_implied(rules: dict[str, FindingRule]) -> None:
    for rule in rules.values():
        for name in rule.implies:
            if name not in rules:
                raise UsageError(f"rules of {rule.finding}: key 'implies' names '{name}', which has no rules.")
