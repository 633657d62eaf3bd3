"""Two runs side by side: what differs in what was asked, their scores, and paired differences on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cxrlt_ray import __version__, cli
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.estimate import Estimate, Sample
from cxrlt_ray.page import charts
from cxrlt_ray.page.facts import Facts, ScoredImages, public
from cxrlt_ray.page.parts import Column, Figure, Heading, Part, Table, Texts, Tile, Tiles
from cxrlt_ray.page.records import Interval, Report, SectionFacts
from cxrlt_ray.page.sections.registry import Section
from cxrlt_ray.runs.records import RunRecord, now
from cxrlt_ray.runs.store import best_first
from cxrlt_ray.storage.finite import finite

SEED = 0
ASIDE = {"version", "name", "created", "shards", "task", "search_db", "start", "asking", "data"}  # of a run's record


class Asked(SectionFacts):
    """A setting that the two runs differ in."""

    setting: str
    one: str
    other: str


class Score(SectionFacts):
    """A figure of both runs."""

    what: str
    one: Interval
    other: Interval


class Paired(SectionFacts):
    """AP of the second run less the first's on the same images: of a finding, or the mean of all (macro)."""

    finding: str
    positives: int
    one: float | None
    other: float | None
    gain: Interval
    verdict: str


class ComparisonFacts(SectionFacts):
    """Two runs. where: the images that both have scored; "" where there are none, and then `paired_note` says why."""

    one: str
    other: str
    about: str
    asked: tuple[Asked, ...]
    scores: tuple[Score, ...]
    where: str = ""
    macro: Interval = Interval()
    paired: tuple[Paired, ...] = ()
    paired_note: str


def compare_runs(one: Facts, other: Facts) -> Report:
    """The report of two runs."""
    where, images, note = _same_images(one, other)
    macro, paired = _paired(one, images) if images else (Interval(), ())
    content = ComparisonFacts(
        one=one.run.name,
        other=other.run.name,
        about=f"{one.run.name} and {other.run.name}. Differences are those of the second less the first.",
        asked=_asked(one.run.record, other.run.record),
        scores=_scores(one, other),
        where=where,
        macro=macro,
        paired=paired,
        paired_note=note,
    )
    title = f"{one.run.name} and {other.run.name}"
    report = Report(kind="comparison", title=title, created=now(), software=f"cxrlt_ray {__version__}")
    report.sections = {COMPARISON.name: finite(content.model_dump(mode="json"))}
    return report


def _asked(one: RunRecord, other: RunRecord) -> tuple[Asked, ...]:
    rows = [("task", one.task.name, other.task.name)]
    names = [name for name in RunRecord.model_fields if name not in ASIDE]
    rows += [(name.replace("_", " "), getattr(one, name), getattr(other, name)) for name in names]
    return tuple(Asked(setting=name, one=_plain(name, a), other=_plain(name, b)) for name, a, b in rows if a != b)


def _plain(name: str, value: object) -> str:
    if "fingerprint" in name:
        return str(value)
    return cli.shortened(public(value)) if value not in (None, (), {}, "") else "–"


def _scores(one: Facts, other: Facts) -> tuple[Score, ...]:
    """Scores of the best trial and the ensemble, and what the trials cost, where at least one run has them."""
    rows = [("best trial, validation (optimistic)", _best(one), _best(other))]
    for where in ("cross_fitted", "holdout", "test"):
        rows.append((f"ensemble, {where.replace('_', '-')}", _stored(one, where), _stored(other, where)))
    return tuple(Score(what=what, one=a, other=b) for what, a, b in rows if not (a.value is None and b.value is None))


def _best(facts: Facts) -> Interval:
    best = next((trial.score for trial in best_first(list(facts.trials)) if trial.score == trial.score), None)
    return Interval(value=best)


def _stored(facts: Facts, where: str) -> Interval:
    if facts.ensemble is None:
        return Interval()
    systems: Any = facts.ensemble.record.scores.get("systems") or {}
    of = systems.get(facts.ensemble.title, {}).get(where)
    return Interval() if of is None else Interval(value=of["map"], low=of["low"], high=of["high"])


def _same_images(one: Facts, other: Facts) -> tuple[str, tuple[ScoredImages, np.ndarray] | None, str]:
    """The images that both runs' ensembles have scored, with the first's labels, and the second's scores of them.

    Rows of both are matched by image id; findings by name, all of the first's must be the second's.
    """
    if set(one.findings) != set(other.findings):
        return "", None, "The runs are of different findings: nothing is paired."
    columns = [other.findings.index(finding) for finding in one.findings]
    for where in one.unseen:
        a, b = one.images(where), other.images(where)
        if a is None or b is None:
            continue
        rows = pd.Index(b.table["image_id"]).get_indexer(a.table["image_id"])
        kept = rows >= 0
        labels_agree = kept.any() and (a.targets[kept] == b.targets[rows[kept]][:, columns]).all()
        if labels_agree and (a.targets[kept] == 1).any():
            table = a.table[kept].reset_index(drop=True)
            shared = ScoredImages(where, a.system, a.targets[kept], a.probabilities[kept], table)
            note = f"Paired on {kept.sum():,} {where.replace('_', '-')} images that both have scored, by subject."
            return where, (shared, b.probabilities[rows[kept]][:, columns]), note
    return "", None, "The runs have scored no images in common with the same labels: their differences are not paired."


def _paired(one: Facts, images: tuple[ScoredImages, np.ndarray]) -> tuple[Interval, tuple[Paired, ...]]:
    """The paired difference of macro mAP, and of each finding's AP."""
    first, scores = images
    systems = [first.probabilities.astype(float), scores.astype(float)]
    draws = metrics.bootstrap_ap(first.targets, systems, first.subjects, rounds=one.rounds, seed=SEED)
    ap = [metrics.per_finding(first.targets, values, which=("ap",))["ap"] for values in systems]
    sample, macro = Sample.of(first.targets, first.subjects), metrics.means(draws)
    whole = Estimate.of_difference(metrics.macro(ap[1]) - metrics.macro(ap[0]), macro[1] - macro[0], sample)
    rows = []
    for c, finding in enumerate(one.findings):
        gain = Estimate.of_difference(float(ap[1][c] - ap[0][c]), draws[1, c] - draws[0, c], sample.part([c]))
        verdict = "differs" if gain.known and gain.excludes_zero else "within chance" if gain.known else "too few"
        known = [finite(float(values[c])) for values in ap]
        positives = int((first.targets[:, c] == 1).sum())
        rows.append(
            Paired(
                finding=finding,
                positives=positives,
                one=known[0],
                other=known[1],
                gain=Interval.of(gain),
                verdict=verdict,
            )
        )
    return Interval.of(whole), tuple(sorted(rows, key=lambda row: -row.positives))


def _show(facts: ComparisonFacts) -> list[Part]:
    names = (facts.one, facts.other)
    parts: list[Part] = [Texts(["about"])]
    if facts.where:
        parts.append(Tiles([Tile("Second less first, macro mAP, paired", "macro", "gain_interval", strong=True)]))
    parts.append(Texts(["paired_note"]))
    columns = [
        Column("score", "what"),
        *(Column(n, p, "score_interval") for n, p in zip(names, ("one", "other"), strict=True)),
    ]
    parts.append(Table("Scores", "scores", columns))
    if facts.paired:
        parts += _by_finding(facts)
    parts.append(Heading("What was asked"))
    if facts.asked:
        columns = [Column("setting", "setting"), Column(facts.one, "one"), Column(facts.other, "other")]
        parts.append(Table("Settings that differ", "asked", columns))
    return parts


def _by_finding(facts: ComparisonFacts) -> list[Part]:
    known = [row for row in facts.paired if row.gain.value is not None]
    marks = [(r.finding, [charts.Mark(r.gain.value or 0.0, r.gain.low, r.gain.high, 0, r.finding)]) for r in known]
    words = f"{sum(row.verdict == 'differs' for row in known)} of {len(known)} findings differ by more than chance"
    drawing = charts.intervals(
        "Difference of AP by finding", words, marks, ["difference"], "AP, second less first", True
    )
    columns = [
        Column("finding", "finding"),
        Column("positives", "positives", "count"),
        Column(facts.one, "one", "score"),
    ]
    columns += [
        Column(facts.other, "other", "score"),
        Column("difference", "gain", "gain_interval"),
        Column("verdict", "verdict"),
    ]
    note = "Each interval is for its own finding: of 40 findings, two differ by chance alone."
    table = Table("AP by finding, paired", "paired", columns, filtered=True, note=note)
    return [Figure("By finding", [drawing], "Positive: the second run is better.", table)]


def _gather(facts: Facts) -> str:
    return "A comparison is gathered of two runs (compare_runs)."


COMPARISON: Section[ComparisonFacts] = Section("comparison", "Side by side", 10, ComparisonFacts, _gather, _show)
