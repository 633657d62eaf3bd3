"""The things to know of a run: leaks, contaminated weights, failed trials, quarantine, and what could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from cxrlt_ray import cli
from cxrlt_ray.data.manifest import MAIN
from cxrlt_ray.page.facts import Facts, public
from cxrlt_ray.page.records import SectionFacts
from cxrlt_ray.runs.records import FAILED, FINISHED, PRUNED, TRANSDUCTIVE

Level = Literal["bad", "warn", "note", "good"]
ORDER: tuple[Level, ...] = ("bad", "warn", "note", "good")
FROM_MIMIC = ("cxrlt2023", "cxrlt2024")  # readers of releases whose images are MIMIC-CXR's
BOTH = ("optimistic", "cross_fitted")
GAP = 0.02  # of mAP between optimistic and cross-fitted that is worth a word


class Notice(SectionFacts):
    """A thing to know; `level` says how grave it is."""

    level: Level
    title: str
    text: str


def notices_of(facts: Facts) -> tuple[Notice, ...]:
    """All there is to know of the run, the gravest first."""
    kinds = (_transductive, _leaks, _copies, _contamination, _seen, _damage, _trials, _quarantine, _optimism, _faults)
    notices = [notice for kind in kinds for notice in kind(facts)]
    return tuple(sorted(notices, key=lambda notice: ORDER.index(notice.level)))


def shared_subjects(facts: Facts) -> dict[str, int]:
    """How many subjects of the main cohort stand in both of two splits, by "train and test"; those above 0."""
    if facts.manifest is None:
        return {}
    table = facts.manifest.of_cohort(MAIN).table[["subject_id", "split"]].dropna()
    splits = {split: set(part["subject_id"]) for split, part in table.groupby("split")}
    names = sorted(splits)
    pairs = {f"{a} and {b}": len(splits[a] & splits[b]) for k, a in enumerate(names) for b in names[k + 1 :]}
    return {pair: count for pair, count in pairs.items() if count}


def _transductive(facts: Facts) -> Iterator[Notice]:
    if facts.run.record.transductive:
        yield Notice(level="bad", title="Test images trained these models", text=TRANSDUCTIVE)


def _leaks(facts: Facts) -> Iterator[Notice]:
    if facts.manifest is None:
        yield Notice(level="warn", title="Splits", text="The manifest cannot be read: leaks cannot be looked for.")
    elif shared := shared_subjects(facts):
        pairs = ", ".join(f"{count:,} in {pair}" for pair, count in shared.items())
        text = f"Subjects stand in two splits at once ({pairs}): scores on the second promise too much."
        yield Notice(level="bad", title="Leak of subjects", text=text)
    else:
        yield Notice(level="good", title="No leak of subjects", text="No subject stands in two splits.")


def _copies(facts: Facts) -> Iterator[Notice]:
    if pairs := ", ".join(f"{alike.found:,} in {pair}" for pair, alike in (facts.alike or {}).items() if alike.found):
        text = (
            f"Nearly equal images stand in two splits ({pairs}): if they are copies of one picture, scores promise too "
            "much. python -m cxrlt_ray.cohort DIR --duplicates names them."
        )
        yield Notice(level="warn", title="Near-duplicate images", text=text)


def contaminated(facts: Facts) -> tuple[str, ...]:
    """The trials whose pretrained weights are known to have seen images of the cohort that is scored."""
    if facts.manifest is None or facts.manifest.source not in FROM_MIMIC:
        return ()
    from cxrlt_ray.models.weights import saw_mimic  # imports torch

    return tuple(trial.name for trial in facts.trials if saw_mimic(trial.record.weights))


def _contamination(facts: Facts) -> Iterator[Notice]:
    if names := contaminated(facts):
        members = {member.trial for member in facts.ensemble.record.members} if facts.ensemble else set()
        within = sum(name in members for name in names)
        text = (
            f"The pretrained weights of {_named(names)} have seen images of MIMIC-CXR, which are scored here"
            + (f"; {within} of them in the ensemble" if within else "")
            + ": their scores promise too much."
        )
        yield Notice(level="bad" if within else "warn", title="Contaminated weights", text=text)


def _seen(facts: Facts) -> Iterator[Notice]:
    """What pretraining is recorded to have seen of the images that judge: the ensemble's members', else any trial's."""
    seen = facts.ensemble.record.seen if facts.ensemble else facts.run.record.seen
    for of in seen:
        sentence = public(of.sentence.removeprefix("Warning: "))
        yield Notice(level="bad" if facts.ensemble else "warn", title="Pretraining saw scored images", text=sentence)


def _damage(facts: Facts) -> Iterator[Notice]:
    if facts.unreadable:
        text = f"The records of {_named(tuple(facts.unreadable))} cannot be read; the rows below say why."
        yield Notice(level="warn", title="Damaged trials", text=text)
    if missing := [trial.name for trial in facts.trials if facts.missing(trial)]:
        yield Notice(level="warn", title="Missing files", text=f"Files of {_named(tuple(missing))} are not there.")


def _trials(facts: Facts) -> Iterator[Notice]:
    finished, failed, pruned = (facts.states[state] for state in (FINISHED, FAILED, PRUNED))
    if not finished:
        yield Notice(
            level="warn", title="No finished trial", text="No trial has finished yet: there is no score to rely on."
        )
    if failed:
        reasons = Counter(public(t.record.reason or "unknown") for t in facts.trials if t.state == FAILED)
        reason, count = reasons.most_common(1)[0]
        what = f"{failed:,} of {len(facts.trials):,} trials failed; most often ({count:,}): {cli.shortened(reason)}"
        yield Notice(level="warn", title="Failed trials", text=what)
    if pruned:
        text = f"{pruned:,} of {len(facts.trials):,} trials were stopped early, as others were ahead of them."
        yield Notice(level="note", title="Pruned trials", text=text)


def _quarantine(facts: Facts) -> Iterator[Notice]:
    if not facts.shards:
        return
    bad, images = facts.shards[0].get("quarantined", 0), facts.shards[0].get("images", 0)
    if bad:
        text = f"{bad:,} of {images:,} images could not be decoded: they trained nothing and get mean scores."
        yield Notice(level="warn", title="Quarantine", text=text)
    else:
        yield Notice(level="good", title="No image in quarantine", text=f"All {images:,} images could be decoded.")


def _optimism(facts: Facts) -> Iterator[Notice]:
    if facts.ensemble is None:
        return
    systems = facts.ensemble.record.scores.get("systems")
    own = systems.get(facts.ensemble.title) if isinstance(systems, dict) else None
    if not isinstance(own, dict) or not set(BOTH) <= set(own):
        return
    flattering, honest = (of.get("map") if isinstance(of := own[name], dict) else None for name in BOTH)
    if isinstance(flattering, float) and isinstance(honest, float) and flattering - honest > GAP:
        text = (
            f"The weights score {flattering - honest:.3f} more on the images that chose them than on others: do not "
            "quote the optimistic score."
        )
        yield Notice(level="note", title="Optimism of the choice", text=text)


def _faults(facts: Facts) -> Iterator[Notice]:
    for fault in dict.fromkeys(facts.faults):
        yield Notice(level="warn", title="Not readable", text=cli.shortened(fault))


def _named(names: tuple[str, ...], most: int = 4) -> str:
    """'T0001, T0002 and 3 more'."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
