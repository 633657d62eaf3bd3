"""Other cohorts joined to the main data, for training only.

Their findings are mapped to CXR-LT's (mapping.py) and from there to the main data's, their ids begin with their name,
and what they do not label is null. Their images without any label are left out, unless soft targets stand for labels.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

import pandas as pd

from cxrlt_ray.data.manifest import COHORT, META, Cohort, Manifest
from cxrlt_ray.data.readers import Raw, Request, all_readers
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.data.readers.files import common_root, plain
from cxrlt_ray.data.rows import checked_rows, in_order, with_settled_paths
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import GENERATED_MARKER, PHANTOM_MARKER
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from cxrlt_ray.data.mapping import CohortMapping

PHANTOM = "phantom:"  # before a directory: the phantom there poses as the cohort
IDS = ("image_id", "study_id", "subject_id")
EVERY: Final = "every"  # of `unlabelled`: every image without a label stays
Unlabelled = frozenset[str] | Literal["every"]


def parse_cohorts(arguments: Sequence[str], option: str = "--cohort") -> dict[str, str]:
    """['nih=/data/nih', 'vindr=phantom:/data/phantom'] -> mapping -> directory, as `others` of `read_cohort`.

    Raises UsageError for another form, a mapping that does not exist or is wrong, and a missing directory.
    """
    from cxrlt_ray.data.mapping import load_mapping

    others: dict[str, str] = {}
    for text in arguments:
        name, _, path = text.partition("=")
        if not (name and path):
            raise UsageError(f"{option} is NAME=DIR, such as nih=/data/nih; not '{text}'.")
        if name in others:
            raise UsageError(f"{option} names {name} twice: give each cohort once.")
        load_mapping(name)
        directory(path.removeprefix(PHANTOM))
        others[name] = path
    return others


def directory(data: str) -> Store:
    """The store of a directory or URI. Raises UsageError where it does not exist."""
    store = Store(data).absolute()
    if not store.exists(""):
        raise UsageError(f"no directory {data}.")
    return store


def sweep_options(others: Mapping[str, str] | None) -> str:
    """`others` as they are given on a command line."""
    return "".join(f" --cohort {shlex.quote(f'{name}={path}')}" for name, path in (others or {}).items())


def join(
    main: Cohort, others: Mapping[str, str], uncertain: str, problems: list[str], unlabelled: Unlabelled = frozenset()
) -> Cohort:
    """`main` and, after its rows, those of the other cohorts by name; paths are below what all roots share.

    others: mapping -> directory, as of `parse_cohorts`. problems: reasons to refuse their data are added to it.
    unlabelled: ids of images that stay without a label of the task, or EVERY.
    """
    cohorts = [main]
    for key, path in others.items():
        other = _other(key, path, main.manifest, uncertain, problems, unlabelled)
        if any(other.roots.keys() & cohort.roots.keys() for cohort in cohorts):
            raise UsageError(f"two cohorts are called {next(iter(other.roots))}: give one of the mappings a `name:`.")
        cohorts.append(other)
    cohorts[1:] = sorted(cohorts[1:], key=lambda cohort: next(iter(cohort.roots)))
    roots = {name: plain(root) for cohort in cohorts for name, root in cohort.roots.items()}
    root = common_root(list(roots.values()))
    tables = []
    for cohort, below in zip(cohorts, roots.values(), strict=True):
        prefix = below[len(root) :].strip("/")
        paths = cohort.manifest.table["path"]
        tables.append(cohort.manifest.table.assign(path=f"{prefix}/" + paths if prefix else paths))
    synthetic = tuple(name for cohort in cohorts for name in cohort.manifest.synthetic)
    manifest = replace(main.manifest, table=pd.concat(tables, ignore_index=True), root=root, synthetic=synthetic)
    origins = pd.concat([cohort.origins for cohort in cohorts], ignore_index=True)
    notes = tuple(note for cohort in cohorts for note in cohort.notes)
    return Cohort(manifest, notes, roots, origins, main.labellings)


def _other(key: str, path: str, main: Manifest, uncertain: str, problems: list[str], unlabelled: Unlabelled) -> Cohort:
    """The images of another cohort that label a finding of `main`: all of split train, ids after the cohort's name."""
    from cxrlt_ray.data.mapping import in_cxr_lt, load_mapping

    mapping, theirs = load_mapping(key), in_cxr_lt(main.findings, main.source)
    if mapping.synthetic and not mapping.findings:
        mapping, theirs = mapping.named_as(main.findings), {finding: finding for finding in main.findings}
    name, reached = mapping.name, [finding for finding in main.findings if theirs.get(finding) in mapping.reached]
    if not (reached or unlabelled):
        raise UsageError(
            f"cohort {name} labels none of the {len(main.findings)} findings of the task, such as {main.findings[0]}: "
            "leave it out, map its findings to those, or give pseudo-labels of its images by --soft-targets."
        )
    raw, table, own_problems = _mapped(mapping, key, path, main.findings, theirs, reached, uncertain)
    if main.table[list(IDS)].apply(lambda ids: ids.str.startswith(f"{name}/").any()).any():
        own_problems.append(
            f"the main data has ids that begin with {name}/, as this cohort's do: give its mapping a `name:`."
        )
    problems += [f"cohort {name}: {problem}" for problem in own_problems]
    notes = [f"Cohort {name}: {note}" for note in raw.notes]
    table = _to_train_with(table, name, main, reached, path, notes, unlabelled)
    origins, table = table[["file", "row"]], table.drop(columns=["file", "row"])
    names = [theirs.get(finding, finding) for finding in main.findings]
    missing = [f"{finding} ({mapping.not_labelled[finding]})" for finding in names if finding in mapping.not_labelled]
    notes += [f"Cohort {name} does not label {'; '.join(missing)}."] if missing else []
    generated = mapping.synthetic or directory(path.removeprefix(PHANTOM)).exists(GENERATED_MARKER)
    notes += [f"Cohort {name} is generated: its labels count for no class weight."] if generated else []
    manifest = Manifest(table, main.findings, mapping.reader, raw.root, (name,) if generated else ())
    return Cohort(manifest, tuple(notes), {name: raw.root}, origins)


def _mapped(
    mapping: CohortMapping,
    key: str,
    path: str,
    findings: Sequence[str],
    theirs: Mapping[str, str],
    reached: Sequence[str],
    uncertain: str,
) -> tuple[Raw, pd.DataFrame, list[str]]:
    """What a cohort's directory holds: as read, its checked rows with `findings` as columns, and problems of its data.

    key: the mapping's. theirs: finding -> CXR-LT's, by which the mapping names it. reached: those that it labels.
    """
    from cxrlt_ray.data.mapping import map_findings, posing

    names = [theirs.get(finding, finding) for finding in findings]
    wanted = {theirs[finding] for finding in reached}
    if path.startswith(PHANTOM):
        raw = with_settled_paths(_phantom(path.removeprefix(PHANTOM), tuple(wanted)))
        table, problems = checked_rows(raw)
        labels = posing(Manifest(table, raw.findings, mapping.name, raw.root), key, names).table[names]
    else:
        sources = tuple(source for source, targets in mapping.findings.items() if set(targets) & wanted)
        reader = all_readers()[mapping.reader]
        request = Request(directory(path), "auto", sources, uncertain, labelled=bool(mapping.findings))
        raw = with_settled_paths(reader.read(request))
        table, problems = checked_rows(raw)
        labels = map_findings(table, mapping, names)
    labels = labels.set_axis(list(findings), axis=1)
    return raw, pd.concat([table[[*META, "file", "row"]], labels], axis=1), problems


def read_site(key: str, path: str, main: Manifest, uncertain: str = "null") -> tuple[Manifest, tuple[str, ...]]:
    """Another site's images that are to be scored by a model of `main`'s findings, and notes for a person.

    key, path: a mapping of cohorts/ and a directory or URI, as of `parse_cohorts`. They are the images of the site's
    split test, or all where it has none, with a label of one of the findings; what the mapping does not reach is null.
    Images of an id that `main` has, and their subjects, are left out. Ids begin with the cohort's name.
    Raises UsageError for a cohort that `main` trained on, and one that labels none of the findings; CxrltError with
    the first fault of the data.
    """
    from cxrlt_ray.data.mapping import in_cxr_lt, load_mapping

    mapping, theirs = load_mapping(key), in_cxr_lt(main.findings, main.source)
    name, reached = mapping.name, [finding for finding in main.findings if theirs.get(finding) in mapping.reached]
    if (main.cohorts == name).any():
        raise UsageError(f"--external {name}: the run trained on images of cohort {name}, which is no other site then.")
    if not reached:
        raise UsageError(f"--external {name}: its mapping labels none of the findings, such as {main.findings[0]}.")
    raw, table, problems = _mapped(mapping, key, path, main.findings, theirs, reached, uncertain)
    if problems:
        raise CxrltError(f"cohort {name}: {problems[0]}")
    notes = [f"Site {name}: {note}" for note in raw.notes]
    if (table["split"] == "test").any():
        table = table[table["split"] == "test"]
        notes.append(f"Site {name}: {counted(len(table), 'image')} of its own split test.")
    shared = _stems(table["image_id"]).isin(_stems(main.table["image_id"]))
    known = table["subject_id"].isin(table.loc[shared, "subject_id"])
    labelled = table[reached].notna().any(axis=1)
    for count, what in (
        (known.sum(), "of subjects with an image that home has, too"),
        ((~labelled).sum(), "unlabelled"),
    ):
        notes += [f"Site {name}: {counted(int(count), 'image')} left out, {what}."] if count else []
    table = table[labelled & ~known]
    if table.empty:
        raise CxrltError(f"site {name} ({path}) has no image to score. {' '.join(notes)}".rstrip())
    ids = {column: f"{name}/" + table[column] for column in IDS}
    table = in_order(table.assign(**ids, split="test", **{COHORT: name}))[[*META, *main.findings]]
    return Manifest(table.reset_index(drop=True), main.findings, mapping.reader, raw.root), tuple(notes)


def _phantom(folder: str, findings: tuple[str, ...]) -> Raw:
    """The phantom's own rows. Raises UsageError for another directory: real patients are never relabelled so."""
    store = directory(folder)
    if not store.exists(PHANTOM_MARKER):
        raise UsageError(f"{folder} holds no phantom cohort to pose as another: python -m cxrlt_ray.phantom {folder}.")
    raw = all_readers()["cxrlt2024"].read(Request(store, "auto", findings))
    return replace(raw, notes=[])  # they are of splits that do not count here


def phantom_as(reader: str, data: Store, findings: tuple[str, ...]) -> Raw:
    """The phantom in `data` as the main data of a format: with `findings`, null where they are none of CXR-LT's."""
    from cxrlt_ray.data.mapping import in_cxr_lt

    names = in_cxr_lt(findings, reader)
    raw = _phantom(data.uri, tuple(names.values()))
    labels = {
        finding: raw.table[names[finding]]
        if names.get(finding) in raw.findings
        else pd.array([pd.NA] * len(raw.table), "Int8")
        for finding in findings
    }
    kept = raw.table[[column for column in raw.table if column not in raw.findings]]
    note = (
        f"The phantom poses as {reader}: {len(names)} of the {len(findings)} findings are drawn, the others are null."
    )
    return replace(raw, table=kept.assign(**labels), findings=findings, notes=[note])


def _stems(image_ids: pd.Series) -> pd.Series:
    """Image ids without the ending of their files, which some formats keep."""
    return image_ids.str.replace(r"\.(?:png|jpe?g|dcm|dicom)$", "", regex=True, case=False)


def _to_train_with(
    table: pd.DataFrame,
    name: str,
    main: Manifest,
    reached: list[str],
    path: str,
    notes: list[str],
    unlabelled: Unlabelled,
) -> pd.DataFrame:
    """A cohort's images that may train beside `main`, in the manifest's form; those left out are added to `notes`."""
    shared = _stems(table["image_id"]).isin(_stems(main.table["image_id"]))
    known = table["subject_id"].isin(table.loc[shared, "subject_id"])
    if known.any():
        notes.append(
            f"Cohort {name}: {counted(known.sum(), 'image')} left out, of "
            f"{counted(table.loc[known, 'subject_id'].nunique(), 'subject')} of whom the main data has an image of the "
            "same id: they would be trained on and scored."
        )
    labelled = table[reached].notna().any(axis=1)
    stays = labelled | (unlabelled == EVERY or (f"{name}/" + table["image_id"]).isin(unlabelled))
    if not stays[~known].all():
        left = (~stays & ~known).sum()
        notes.append(f"Cohort {name}: {counted(left, 'image')} without a label of the task left out.")
    if silent := (stays & ~labelled & ~known).sum():
        notes.append(f"Cohort {name}: {counted(silent, 'image')} without a label of the task, for pseudo-labels.")
    table = table[stays & ~known]
    if table.empty:
        raise CxrltError(f"cohort {name} ({path}) has no image to train on. {' '.join(notes)}".rstrip())
    labelled_findings = [finding for finding in reached if table[finding].notna().any()]
    notes.append(
        f"Cohort {name}: {counted(len(table), 'image')} from {path}, ids begin with {name}/. They train, whatever "
        f"their own split, and are never scored. Labelled: {len(labelled_findings)} of the task's "
        f"{len(main.findings)} findings."
    )
    ids = {column: f"{name}/" + table[column] for column in IDS}
    return in_order(table.assign(**ids, split="train", **{COHORT: name}))
