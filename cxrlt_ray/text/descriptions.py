"""Descriptions of findings: one YAML a finding in descriptions/, which a radiologist reads and corrects.

A user's own file or folder comes first; for what it does not hold there are those of the package. A text is plain
words: what a spreadsheet would take for a formula, and brackets, which name the special tokens of text encoders
([SEP], <s>) and markup, are refused. docs/descriptions.md shows a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from cxrlt_ray.config import PACKAGE, Config, read_yaml, validate
from cxrlt_ray.data.asking import own_names
from cxrlt_ray.data.column_names import folded
from cxrlt_ray.data.tasks import ALL_FINDINGS, TASK1_2026, TASK2_2026
from cxrlt_ray.errors import UsageError
from cxrlt_ray.privacy import unfit
from cxrlt_ray.storage import Store

FOLDER, PLACES = "descriptions", "places"
KEPT = "descriptions.yaml"  # of a run: the user's own
MARKUP = r"[<>\[\]{}`\\]"
LONGEST_NAME, LONGEST_APPEARANCE = 100, 1000  # characters
CHALLENGE_FINDINGS = (*ALL_FINDINGS, *TASK1_2026, *TASK2_2026)


def _plain(text: str) -> str:
    if not folded(text):
        raise ValueError("no letter or digit: write words")
    if unfit(text) or unfit(text.strip()):
        raise ValueError("begins with = + - or @, or has control characters: write plain words")
    if re.search(MARKUP, text):
        raise ValueError("has brackets, a backslash or a backtick, which are markup: write plain words")
    return text.strip()


def _name(text: str) -> str:
    if len(text) > LONGEST_NAME:
        raise ValueError(f"{len(text):,} characters: at most {LONGEST_NAME} for a name")
    return _plain(text)


def _appearance(text: str) -> str:
    if len(text) > LONGEST_APPEARANCE:
        raise ValueError(f"{len(text):,} characters: at most {LONGEST_APPEARANCE:,}, which is one to three sentences")
    return _plain(text)


def _in_one_line(text: object) -> object:
    return re.sub(r"\s*\n\s*", " ", text).strip() if isinstance(text, str) else text


def _place(name: str) -> str:
    if name not in place_names():
        raise ValueError(f"no place of {FOLDER}/{PLACES}.yaml; nearest: {nearest(name, place_names())}")
    return name


Name = Annotated[str, AfterValidator(_name)]


class Description(Config):
    """What a finding is called, how it looks on a radiograph and where.

    finding: its name as a label. aliases: other labels for the same. names: how radiologists call it, the usual name
    first. synonyms: other words for it. appearance: one to three sentences on what is seen. place: of `place_names`.
    keywords: 3 to 6 signs or words. denied: statements that it is absent, where "no NAME seen" does not say so.
    parents: findings of which it is a kind, beside what CheXpert's hierarchy and label_rules/ say. reviewed: false
    for a draft, which nothing but `describe` reads.
    """

    finding: Name
    aliases: tuple[Name, ...] = ()
    names: Annotated[tuple[Name, ...], Field(min_length=1)]
    synonyms: tuple[Name, ...] = ()
    appearance: Annotated[str, BeforeValidator(_in_one_line), AfterValidator(_appearance)]
    place: tuple[Annotated[str, AfterValidator(_place)], ...] = ()
    keywords: Annotated[tuple[Name, ...], Field(min_length=3, max_length=6)]
    denied: tuple[Name, ...] = ()
    parents: tuple[Name, ...] = ()
    reviewed: bool = True

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        for key, texts in {"names and synonyms": self.wordings, "keywords": self.keywords}.items():
            if twice := _repeated(texts):
                raise ValueError(f"{key} hold '{twice}' twice: keep one")
        return self

    @property
    def wordings(self) -> tuple[str, ...]:
        """Names, then synonyms."""
        return self.names + self.synonyms

    @property
    def labels(self) -> tuple[str, ...]:
        """The finding and its aliases."""
        return (self.finding, *self.aliases)


# the user's own: a YAML file, a folder of them, or descriptions, of which a later one comes before an earlier one
Own = str | Path | Sequence[Description] | None


class DescriptionFile(Config):
    """A file with the descriptions of several findings."""

    descriptions: Annotated[tuple[Description, ...], Field(min_length=1)]


class PlaceFile(Config):
    """places.yaml: a place -> the larger places that it is a part of or lies over."""

    places: dict[Name, tuple[str, ...]]


def load_descriptions(findings: Sequence[str], own: Own = None) -> dict[str, Description]:
    """The descriptions of `findings`, by the names asked for and in their order.

    own: the user's, which come before the package's. Names are compared without case, blanks and signs; an alias is
    its finding.
    Raises UsageError for a file that is wrong, a name that must not stand in a table, a finding without description,
    and one whose description is a draft.
    """
    result = {}
    for finding, description in look_up(findings, own).items():
        if description is None:
            raise UsageError(_missing(finding, own))
        if not description.reviewed:
            raise UsageError(
                f"the description of '{description.finding}' is a draft (reviewed: false): read and correct it, then "
                "set reviewed: true."
            )
        result[finding] = description
    return result


def check_finding(finding: str) -> None:
    """Raise UsageError for the name of a finding that must not stand in a table or a prompt."""
    try:
        _name(finding)
    except ValueError as error:
        raise UsageError(f"finding {finding[:LONGEST_NAME]!r}: {error}.") from None


def look_up(findings: Sequence[str], own: Own = None) -> dict[str, Description | None]:
    """As `load_descriptions`, with None for a finding without description, and drafts as they are."""
    known = _known(own)
    for finding in findings:
        check_finding(finding)
    return {finding: known.get(folded(finding)) for finding in findings}


def meanings(names: Iterable[str], own: Own = None) -> dict[str, str]:
    """Each of `names` -> the finding that it means, without case, blanks and signs: an alias is its finding."""
    known = _known(own)
    described = {name: known.get(folded(name)) for name in names}
    return {name: folded(d.finding if d else name) for name, d in described.items()}


def own_labels(findings: Sequence[str], names: Iterable[str], own: Own = None) -> dict[str, str]:
    """Those of `names` that mean one of `findings` -> that finding: in another spelling, or by an alias of it."""
    finding_of = {meaning: finding for finding, meaning in reversed(meanings(findings, own).items())}
    names = tuple(names)
    found = own_names(findings, names)  # the spelling goes before an alias
    by_meaning = {name: finding_of.get(meaning) for name, meaning in meanings(names, own).items()}
    return {name: finding for name in names if (finding := found.get(name) or by_meaning[name])}


def read_descriptions(path: str | Path) -> tuple[Description, ...]:
    """All descriptions in a YAML file, which holds one or, under `descriptions`, several; or in a folder's files.

    Raises UsageError naming file, key, value and what is allowed; and for a finding that is described twice.
    """
    place = Path(path)
    if not place.exists():
        raise UsageError(f"{path}: no such file or folder of descriptions.")
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    if not files:
        raise UsageError(f"{path} is a folder without .yaml files: give one file a finding, or one file for all.")
    return _distinct(files)


def kept_descriptions(run: Store) -> tuple[Description, ...]:
    """The user's own descriptions that a run's directory keeps; () for none."""
    if not run.exists(KEPT):
        return ()
    with run.fetched(KEPT) as path:
        return read_descriptions(path)


def shipped() -> tuple[Description, ...]:
    """The descriptions of the package."""
    return _distinct([path for path in sorted(_folder().glob("*.yaml")) if path.stem != PLACES])


def as_yaml(*descriptions: Description) -> str:
    """Descriptions as a file that `read_descriptions` reads; what has its default is left out."""
    contents = [description.model_dump(mode="json", exclude_defaults=True) for description in descriptions]
    content = contents[0] if len(contents) == 1 else {"descriptions": contents}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)


def nearest(name: str, names: Iterable[str]) -> str:
    """The up to three of `names` that read most like `name`, or none."""
    by_form = {known.lower(): known for known in names}
    return ", ".join(by_form[match] for match in get_close_matches(name.lower(), by_form, 3, 0.5)) or "none"


def place_names() -> tuple[str, ...]:
    """The places of the chest that descriptions may name."""
    return tuple(_places())


def other_places(description: Description) -> tuple[str, ...]:
    """The places that overlap none of a finding's: where it is not seen. All places for a finding without place."""
    taken = [_area(place) for place in description.place]
    return tuple(place for place in place_names() if not any(_area(place) & area for area in taken))


def _known(own: Own) -> dict[str, Description]:
    """Descriptions by the folded names of their labels, the user's own over the package's."""
    users = read_descriptions(own) if isinstance(own, (str, Path)) else tuple(own or ())
    every = (*shipped(), *users)
    known = {folded(label): description for description in every for label in description.labels}
    _check_parents(every, known)
    return known


def _check_parents(descriptions: Iterable[Description], known: dict[str, Description]) -> None:
    names = {folded(name) for name in CHALLENGE_FINDINGS} | set(known)
    for description in descriptions:
        for parent in description.parents:
            if folded(parent) not in names:
                raise UsageError(
                    f"the description of '{description.finding}': key 'parents': given '{parent}', which is no finding "
                    f"with a description; nearest: {nearest(parent, CHALLENGE_FINDINGS)}."
                )


def _missing(finding: str, own: Own) -> str:
    names = [label for description in _known(own).values() for label in description.labels]
    place = str(own) if isinstance(own, (str, Path)) else "your own descriptions" if own else ""
    where = f"in {place} or in the package" if place else "in the package"
    return (
        f"finding '{finding}' has no description {where}; nearest: {nearest(finding, names)}. Write a YAML file with "
        f"its finding, names, appearance and keywords (docs/descriptions.md), or let a language model draft one: "
        f"python -m cxrlt_ray.describe '{finding}' --url URL --model MODEL."
    )


def _folder() -> Path:
    # an installed wheel carries the folder inside the package, a checkout beside it
    return next(place for place in (PACKAGE / FOLDER, PACKAGE.parent / FOLDER) if place.is_dir())


def _distinct(files: Sequence[Path]) -> tuple[Description, ...]:
    """The descriptions in files. Raises UsageError where two are of one finding."""
    known: dict[str, Path] = {}
    descriptions = [(file, each) for file in files for each in _in_file(file)]
    for file, description in descriptions:
        for label in description.labels:
            if (form := folded(label)) in known:
                raise UsageError(f"{file}: '{label}' is described in {known[form]} too: keep one.")
            known[form] = file
    return tuple(description for _, description in descriptions)


def _in_file(path: Path) -> tuple[Description, ...]:
    return _parsed(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=512)
def _parsed(path: Path, modified: int) -> tuple[Description, ...]:
    content = read_yaml(path)
    if "descriptions" in content:
        return validate(DescriptionFile, content, path).descriptions
    return (validate(Description, content, path),)


def _places() -> dict[str, tuple[str, ...]]:
    path = _folder() / f"{PLACES}.yaml"
    return _parsed_places(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _parsed_places(path: Path, modified: int) -> dict[str, tuple[str, ...]]:
    places = validate(PlaceFile, read_yaml(path), path).places
    for place, larger in places.items():
        if wrong := [name for name in larger if name not in places]:
            raise UsageError(
                f"{path}: key 'places.{place}': given '{wrong[0]}', which is no place; nearest: "
                f"{nearest(wrong[0], places)}."
            )
    return places


def _area(place: str) -> frozenset[str]:
    """A place and all that lies in it; two places overlap where their areas do."""
    larger = _places()
    area, waiting = {place}, [place]
    while waiting:
        around = waiting.pop()
        inside = [name for name, of in larger.items() if around in of and name not in area]
        area.update(inside)
        waiting += inside
    return frozenset(area)


def _repeated(texts: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for text in texts:
        if (form := folded(text)) in seen:
            return text
        seen.add(form)
    return None
