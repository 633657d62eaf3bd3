"""The data: splits, views, drift of prevalence, duplicates across splits, agreement of two labellings, decoding."""

from __future__ import annotations

import numpy as np

from cxrlt_ray.data.duplicates import BITS, NEAR
from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.page import charts
from cxrlt_ray.page.cohort_facts import difference, example_images, identical_files, prevalence
from cxrlt_ray.page.facts import Facts, public
from cxrlt_ray.page.notices import shared_subjects
from cxrlt_ray.page.parts import Column, Figure, Images, Part, Table, Texts
from cxrlt_ray.page.records import Interval, SectionFacts
from cxrlt_ray.page.sections.registry import register_section

ORDER = ("train", "val", "holdout", "test", "development")
AGREEMENT = (
    "On studies that both label; F1 and Cohen's kappa with 95 % intervals by subject. Scored: studies that the cohort "
    "sets apart to be scored, which keep its labels."
)
LABELLED = 8  # findings that are named in the drift's plot, besides those that drift


class SplitRow(SectionFacts):
    """A split's size; positives: positive labels an image."""

    split: str
    images: int
    studies: int
    subjects: int
    share: float
    positives: float | None


class ViewRow(SectionFacts):
    """How many images of each split, in the order of `Data.splits`, are of a view."""

    view: str
    images: tuple[int, ...]


class DriftRow(SectionFacts):
    """A finding's prevalence in training and in the scored split. drifts: differs after Bonferroni's correction."""

    finding: str
    train: float | None
    scored: float | None
    difference: Interval
    ratio: float | None
    drifts: bool


class Shared(SectionFacts):
    """What stands in two splits at once: subjects, identical files, and near-duplicates among the images compared.

    None where it is not known. compared: images of the smaller split, each with all of the other.
    """

    splits: str
    subjects: int
    files: int | None
    alike: int | None
    compared: int | None


class AgreementRow(SectionFacts):
    """How far labels that were given agree with the cohort's own; positives are counts of `studies`."""

    finding: str
    images: str
    studies: int
    own: int
    given: int
    both: int
    f1: Interval
    kappa: Interval


class PreparedRow(SectionFacts):
    """Prepared images of one size."""

    size: int
    images: int
    quarantined: int
    converted: int
    suspect: int
    bytes: int
    seconds: float


class Example(SectionFacts):
    """A training image with a finding, as a data URI."""

    finding: str
    image: str


class Data(SectionFacts):
    """The cohort as the run split it."""

    about: str
    splits: tuple[SplitRow, ...]
    views: tuple[ViewRow, ...] = ()
    scored_split: str = ""
    drift: tuple[DriftRow, ...] = ()
    drift_note: str = ""
    shared: tuple[Shared, ...] = ()
    shared_note: str = ""
    agreement: tuple[AgreementRow, ...] = ()
    agreement_note: str = ""
    prepared: tuple[PreparedRow, ...] = ()
    examples: tuple[Example, ...] = ()


def gather(facts: Facts) -> Data | str:
    """The data's facts."""
    if (manifest := facts.manifest) is None:
        return "The manifest cannot be read."
    own = manifest.of_cohort(MAIN)
    names = [name for name in ORDER if (own.table["split"] == name).any()]
    names += sorted(set(own.table["split"].dropna()) - set(names))
    drift = _drift(facts, own)
    return Data(
        about=_about(facts, manifest),
        splits=tuple(_split(facts, own, name) for name in names),
        views=_views(own, names),
        scored_split=drift[0],
        drift=drift[1],
        drift_note=_drift_note(drift[0], drift[1]),
        shared=_shared(facts),
        shared_note=_shared_note(facts),
        agreement=_agreement(facts),
        agreement_note=AGREEMENT if facts.run.record.label_agreement else "",
        prepared=_prepared(facts),
        examples=_examples(facts, manifest),
    )


def _about(facts: Facts, manifest: Manifest) -> str:
    record, cohorts = facts.run.record, manifest.cohorts.value_counts()
    text = f"Read as {manifest.source}: {len(manifest.table):,} images"
    if others := [f"{count:,} of {name}" for name, count in cohorts.items() if name != MAIN]:
        text += f", {', '.join(others)} (other cohorts only train)"
    text += ", drawn, of no patients" if facts.phantom else ""
    if record.labels is not None:
        text += f". Labels were given beside the cohort's ({record.labels_mode or 'replace'})"
    return f"{text}. Labels marked uncertain count as {record.uncertain}."


def _split(facts: Facts, own: Manifest, name: str) -> SplitRow:
    part = own.of_split(name)
    positives = (part.targets(facts.findings) == 1).sum()
    return SplitRow(
        split=name,
        images=len(part.table),
        studies=int(part.table["study_id"].fillna(part.table["image_id"]).nunique()),
        subjects=int(part.table["subject_id"].nunique()),
        share=len(part.table) / len(own.table),
        positives=float(positives / len(part.table)) if len(part.table) else None,
    )


def _views(own: Manifest, names: list[str]) -> tuple[ViewRow, ...]:
    views = own.table["view"].fillna("UNKNOWN")
    return tuple(
        ViewRow(view=view, images=tuple(int(((views == view) & (own.table["split"] == name)).sum()) for name in names))
        for view in views.value_counts().index
    )


def _drift(facts: Facts, own: Manifest) -> tuple[str, tuple[DriftRow, ...]]:
    """The scored split (validation where it carries no label) and each finding's drift to it, the largest first."""
    train = own.of_split("train")
    for split in (facts.run.task.scored_split, "val"):
        scored = own.of_split(split)
        if (scored.targets(facts.findings) >= 0).any() and len(train.table):
            break
    else:
        return "", ()
    shares = [prevalence(part.targets(facts.findings), part.table["subject_id"].to_numpy()) for part in (train, scored)]
    intervals, drifts = difference(shares[0], shares[1], len(facts.findings))
    rows = []
    for c, finding in enumerate(facts.findings):
        p, q = (float(share[0][c]) for share in shares)
        known = [None if np.isnan(value) else value for value in (p, q)]
        ratio = q / p if p > 0 and q == q else None
        rows.append(
            DriftRow(
                finding=finding,
                train=known[0],
                scored=known[1],
                difference=intervals[c],
                ratio=ratio,
                drifts=bool(drifts[c]),
            )
        )
    return split, tuple(sorted(rows, key=lambda row: -abs(row.difference.value or 0.0)))


def _drift_note(split: str, rows: tuple[DriftRow, ...]) -> str:
    drifting = [row.finding for row in rows if row.drifts]
    if not rows:
        return ""
    what = f"Prevalence in training and {split} images differs"
    if not drifting:
        return f"{what} for no finding by more than chance (after correction for {len(rows)} comparisons)."
    shown = ", ".join(drifting[:6]) + (f" and {len(drifting) - 6} more" if len(drifting) > 6 else "")
    return f"{what} for {len(drifting)} of {len(rows)} findings by more than chance: {shown}."


def _shared(facts: Facts) -> tuple[Shared, ...]:
    subjects, alike = shared_subjects(facts), facts.alike or {}
    files = None if facts.indexed is None else identical_files(facts.indexed)
    return tuple(
        Shared(
            splits=pair,
            subjects=subjects.get(pair, 0),
            files=None if files is None else files.get(pair),
            alike=alike[pair].found if pair in alike else None,
            compared=alike[pair].compared if pair in alike else None,
        )
        for pair in sorted({*subjects, *(files or {}), *alike})
    )


def _shared_note(facts: Facts) -> str:
    if facts.alike is None:
        return "Near-duplicates are not known of these images: python -m cxrlt_ray.cohort DIR --duplicates finds them."
    return (
        f"Near-duplicates: at most {NEAR} of {BITS} bits of two images' perceptual hashes differ, as of copies that "
        "were resized, recompressed or windowed anew. python -m cxrlt_ray.cohort DIR --duplicates names them."
    )


def _agreement(facts: Facts) -> tuple[AgreementRow, ...]:
    return tuple(
        AgreementRow(images="scored" if row.scored else "training", **row.model_dump(exclude={"scored"}))
        for row in facts.run.record.label_agreement
    )


def _prepared(facts: Facts) -> tuple[PreparedRow, ...]:
    return tuple(
        PreparedRow(
            size=summary.get("size", 0),
            images=summary.get("images", 0),
            quarantined=summary.get("quarantined", 0),
            converted=sum(summary.get("converted", {}).values()),
            suspect=sum(summary.get("suspect", {}).values()),
            bytes=summary.get("bytes", 0),
            seconds=summary.get("seconds", 0.0),
        )
        for summary in facts.shards
    )


def _examples(facts: Facts, manifest: Manifest) -> tuple[Example, ...]:
    shards = facts.run.shards()
    if not facts.images_shown or not shards:
        return ()
    try:
        images = example_images(manifest, shards[0], facts.findings)
    except (CxrltError, OSError, ValueError) as error:
        facts.faults.append(f"The prepared images cannot be shown: {public(error)}")
        return ()
    return tuple(Example(finding=finding, image=image) for finding, image in images.items())


@register_section("data", "Data", order=80, facts=Data, gather=gather)
def data(facts: Data) -> list[Part]:
    """Sizes, views, drift, what stands in two splits, how images were prepared."""
    columns = [Column("split", "split"), Column("images", "images", "count"), Column("studies", "studies", "count")]
    columns += [Column("subjects", "subjects", "count"), Column("share", "share", "percent")]
    columns.append(Column("positive labels an image", "positives", "number"))
    parts: list[Part] = [Texts(["about"]), Table("Splits", "splits", columns)]
    if facts.views:
        columns = [Column("view", "view")]
        columns += [Column(row.split, f"images/{k}", "count") for k, row in enumerate(facts.splits)]
        parts.append(Table("Views", "views", columns))
    if facts.drift:
        parts.append(_drift_figure(facts))
    if facts.shared:
        columns = [Column("in both", "splits"), Column("subjects", "subjects", "count")]
        columns.append(Column("identical files", "files", "count"))
        columns.append(Column("near-duplicates", "alike", "count"))
        columns.append(Column("of images compared", "compared", "count", "of the smaller split, with all of the other"))
        parts.append(Table("In two splits at once", "shared", columns))
    parts.append(Texts(["shared_note"]))
    if facts.agreement:
        parts += [_agreement_table(), Texts(["agreement_note"])]
    if facts.prepared:
        columns = [Column("edge, px", "size", "count"), Column("images", "images", "count")]
        columns += [Column("in quarantine", "quarantined", "count"), Column("converted", "converted", "count")]
        columns += [Column("suspect", "suspect", "count"), Column("size", "bytes", "bytes")]
        parts.append(Table("Prepared images", "prepared", [*columns, Column("time", "seconds", "seconds")]))
    if facts.examples:
        parts.append(Images("Training images with each finding", "examples", "image", "finding"))
    return parts


def _agreement_table() -> Table:
    columns = [Column("finding", "finding"), Column("images", "images"), Column("studies", "studies", "count")]
    columns.append(Column("cohort's", "own", "count", "positive by the cohort's labels"))
    columns.append(Column("given", "given", "count", "positive by the given labels"))
    columns.append(Column("both", "both", "count", "positive by both"))
    columns.append(Column("F1", "f1", "score_interval", "the cohort's are the truth"))
    columns.append(Column("kappa", "kappa", "score_interval", "Cohen's; 0 is agreement by chance"))
    title = "Labels given beside the cohort's, and its own"
    return Table(title, "agreement", columns, filtered=True, facet="images")


def _drift_figure(facts: Data) -> Figure:
    known = [row for row in facts.drift if row.train and row.scored]
    dots = [
        charts.Dot(row.finding, row.train or 0.0, row.scored or 0.0, 1 if row.drifts else 0, row.drifts or k < LABELLED)
        for k, row in enumerate(known)
    ]
    titles = (
        "Prevalence in training and scored images",
        facts.drift_note,
        dots,
        "prevalence, training",
        f"prevalence, {facts.scored_split}",
    )
    series = [("within chance", 0), ("differs", 1)]
    drawing = charts.scatter(*titles, log=(True, True), diagonal=True, series=series)
    columns = [
        Column("finding", "finding"),
        Column("training", "train", "percent"),
        Column(facts.scored_split, "scored", "percent"),
        Column("difference", "difference", "gain_interval", "in shares of the images; 95 %, by subject"),
        Column("ratio", "ratio", "number"),
        Column("more than chance", "drifts"),
    ]
    table = Table("Drift of prevalence", "drift", columns, folded=True)
    title = f"From training to {facts.scored_split}"
    return Figure(title, [drawing] if len(known) > 1 else [], facts.drift_note, table)
