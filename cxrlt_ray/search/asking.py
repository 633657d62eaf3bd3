"""What a sweep that asks for findings by text is made of: the seen findings, their folds, and labels put out of reach.

The labels that the data has of the asked findings are taken out of training and validation before anything reads them;
the images that are scored at the end keep theirs, and lose those of the seen findings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cxrlt_ray.data.asking import (
    ALWAYS,
    CHOSEN_ON,
    CORPUS,
    MINED,
    OUTSIDE_LABELS,
    SCRUBBED,
    TRACKS,
    Asking,
    own_names,
)
from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.data.mined_labels import MinedLabels
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.data.tasks import ALL_FINDINGS, Task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.space import Space

if TYPE_CHECKING:
    from cxrlt_ray.text.corpus import Corpus
    from cxrlt_ray.text.descriptions import Own

FOLD_SIZE = 5  # findings of a fold, where there are enough: one head, two medium, two tail


def asking_of(request: SweepRequest, manifest: Manifest) -> Asking:
    """The seen findings of the data and their folds. Raises UsageError where they are too few for the folds."""
    from cxrlt_ray.search.run_texts import own_descriptions
    from cxrlt_ray.text.descriptions import own_labels
    from cxrlt_ray.text.groups import families, finding_folds, parents

    targets = manifest.of_cohort(MAIN).of_split("train").targets(manifest.findings)
    labelled, positives = (targets >= 0).sum(axis=0), (targets == 1).sum(axis=0)
    known = (positives > 0) & (positives < labelled)
    described = own_descriptions(request)
    asked = _asked_names(request, manifest.findings, described)
    same = own_labels(asked, manifest.findings, described)  # another label of an asked finding would give it away
    rows = [c for c, name in enumerate(manifest.findings) if known[c] and name not in same]
    seen = tuple(manifest.findings[c] for c in rows)
    if request.choose_by == MINED:
        return Asking(asked, seen, (ALWAYS,) * len(seen), MINED, by_mined=True)
    folds, related = request.models, parents(described)
    groups = families(seen, related)
    if groups < max(folds, 2):
        raise UsageError(
            f"{', '.join(asked[:5])} are asked for by text, and {len(seen)} findings have labels to train on: {folds} "
            f"folds of unrelated ones, and others to train on, are needed, and they are {groups} groups of relatives. "
            "Give fewer --finding-folds, or data with more findings."
        )
    count = min(max(folds, math.ceil(len(seen) / FOLD_SIZE), 2), groups)
    divided = finding_folds(seen, positives[rows] / labelled[rows], count, request.seed, related)
    fold = tuple(int(k) if k < folds else ALWAYS for k in divided)
    return Asking(asked, seen, fold, request.track or SCRUBBED)


def _asked_names(request: SweepRequest, findings: Sequence[str], described: Own) -> tuple[str, ...]:
    """What is asked for, by the data's names of what the data labels, by an alias too with --ask; a task has its own.

    Raises UsageError for one finding that is asked for by two names.
    """
    from cxrlt_ray.text.descriptions import meanings, own_labels

    names = request.asked
    own = own_names(findings, names) if request.ask is None else own_labels(findings, names, described)
    by_meaning: dict[str, str] = {}
    for name, meaning in meanings(names, described).items():
        if (other := by_meaning.setdefault(meaning, name)) != name and request.ask is not None:
            raise UsageError(f"--ask names {other} and {name}, which is one finding: findings are named each once.")
    return tuple(own.get(name, name) for name in names)


def with_mined(
    manifest: Manifest, asking: Asking, reports: str, address: str | None
) -> tuple[Manifest, MinedLabels | None]:
    """The manifest with labels of the asked findings where models are trained and chosen, as reports say.

    Beside it those of the findings in folds, as far as there are rules for them; None where no finding is in a fold.
    Raises UsageError where no study that trains or validates has a report, and where mined labels are to choose and
    there is no positive one of validation.
    """
    from cxrlt_ray.labelling.reports import read_reports
    from cxrlt_ray.labelling.rules import ruled_findings
    from cxrlt_ray.text.descriptions import own_labels
    from cxrlt_ray.text.mining import beside, mine, of_splits

    folded = [name for k in range(asking.folds) for name in asking.of_fold(k)]
    ruled = tuple(own_labels(ruled_findings(None), folded))
    every = of_splits(mine(read_reports(reports), (*asking.asked, *ruled), address=address), manifest)
    table = beside(manifest, dataclasses.replace(every, table=every.table[list(asking.asked)]))
    for finding in asking.asked:
        targets = table.of_split(*CHOSEN_ON).targets((finding,))
        print(f"  {finding}: {(targets == 1).sum():,} positive and {(targets == 0).sum():,} negative images mined")
    if asking.by_mined and not (table.of_cohort(MAIN).of_split("val").targets(asking.asked) == 1).any():
        raise UsageError(
            f"--choose-by {MINED}: no validation report affirms {', '.join(asking.asked[:5])}, so that nothing can be "
            "chosen by them: leave --choose-by out, and folds of seen findings choose."
        )
    if not ruled:
        return table, None
    print(
        f"  A fold's findings are learned from mined labels too, and judged by real ones: {len(ruled)} of {len(folded)}"
    )
    others = beside(manifest, dataclasses.replace(every, table=every.table[list(ruled)])).of_split(*CHOSEN_ON).table
    return table, MinedLabels(others.set_index("image_id")[list(ruled)])


def corpora_of(corpus: Corpus, asking: Asking | None, request: SweepRequest) -> dict[str, Corpus]:
    """The texts of a run by file name: on track scrubbed each fold's without what is hidden from its model."""
    from cxrlt_ray.search.run_texts import own_descriptions
    from cxrlt_ray.text.naming import read_phrases

    if asking is None or asking.track != SCRUBBED:
        return {CORPUS: corpus}
    own = own_descriptions(request)
    phrases = read_phrases(request.scrub) if request.scrub else {}
    _check_named(phrases, asking, corpus, request.scrub, own)
    base = corpus.scrubbed(asking.asked, request.address, phrases, own)
    print(f"Scrubbed of {', '.join(asking.asked[:5])}: {base.about.removed:,} sentences left out of the reports")
    folds = {
        asking.corpus_of(k): base.scrubbed(sorted(asking.judged(k)), request.address, phrases, own)
        for k in range(asking.folds)
    }
    return {CORPUS: base, **folds}


def _check_named(phrases: Mapping[str, object], asking: Asking, corpus: Corpus, path: str | None, own: Own) -> None:
    """Raises UsageError for a list of wordings of what is no finding: it would be read, and nothing scrubbed by it."""
    from cxrlt_ray.text.descriptions import nearest, own_labels

    known = tuple(dict.fromkeys((*asking.trained, *corpus.about.findings, *ALL_FINDINGS)))
    if unknown := [name for name in phrases if name not in own_labels(known, phrases, own)]:
        raise UsageError(
            f"{path}: key '{unknown[0]}' is no finding that is asked for, seen or known by rules; nearest: "
            f"{nearest(unknown[0], known)}."
        )


def check_asking(space: Space, asks: bool) -> None:
    """Raises UsageError where a space's trials cannot answer by text what is asked, or would with nothing asked."""
    from cxrlt_ray.models.heads import HEADS
    from cxrlt_ray.objectives.registry import all_objectives

    asking = [name for name, objective in all_objectives().items() if objective.asks]
    last = [config.staged()[-1] for config in space.kinds()]
    for config in last:
        answers = HEADS[config.head].needs_embeddings and config.objective in asking
        if asks and not answers:
            raise UsageError(
                f"search space {space.name} has trials that answer by no text (head {config.head}, objective "
                f"{config.objective}): findings without labels need objective {' or '.join(asking)}, and a head that "
                f"reads text ({', '.join(name for name, head in HEADS.items() if head.needs_embeddings)}), such as "
                "--space laptop_text."
            )
        if not asks and config.objective in asking:
            raise UsageError(
                f"search space {space.name} trains models to be asked by text: sweep task3, or say what to ask for by "
                '--ask "Bulla,Scoliosis".'
            )


def task_of(request: SweepRequest, task: Task, asking: Asking) -> Task:
    """The task of a sweep with --ask: the findings that are asked for, scored as the given task's are."""
    return task if request.ask is None else dataclasses.replace(task, name="asked", findings=asking.asked)


def out_of_reach(manifest: Manifest, asking: Asking) -> Manifest:
    """The manifest with no label of an asked finding where models are trained and chosen, and no other elsewhere."""
    table = manifest.table.copy()
    chosen_on = table["split"].isin(CHOSEN_ON).to_numpy(bool)
    hidden = chosen_on & (manifest.cohorts == MAIN).to_numpy() if asking.track == OUTSIDE_LABELS else chosen_on
    for finding in asking.trained:
        if finding not in table:
            table[finding] = pd.array([pd.NA] * len(table), "Int8")
        elif finding not in asking.asked:
            table[finding] = table[finding].mask(~chosen_on)
        elif asking.track != MINED:
            table[finding] = table[finding].mask(hidden)
    others = [name for name in manifest.findings if name not in asking.trained]
    return dataclasses.replace(manifest, table=table.drop(columns=others), findings=asking.trained)


def lines(asking: Asking, manifest: Manifest) -> list[str]:
    """What a person should know of it, before anything is trained.

    Raises UsageError on track `outside` where no other cohort labels an asked finding.
    """
    main = manifest.of_cohort(MAIN)
    hidden = [name for name in asking.asked if name in manifest.findings and _labelled(main, name)]
    whose = "The main cohort's labels of them" if asking.track == OUTSIDE_LABELS else "Their labels"
    note = f"{whose} in training and validation are not read: {', '.join(hidden)}"
    return [
        f"Asked for by text: {', '.join(asking.asked)}; track {asking.track}: {TRACKS[asking.track]}",
        *([note] if hidden and asking.track != MINED else []),
        *(_outside_lines(asking, manifest) if asking.track == OUTSIDE_LABELS else []),
        *(
            [f"Chosen by labels mined from the validation studies' reports: as good as these, and no better ({MINED})"]
            if asking.by_mined
            else _fold_lines(asking)
        ),
    ]


def _outside_lines(asking: Asking, manifest: Manifest) -> list[str]:
    others = [name for name in dict.fromkeys(manifest.cohorts) if name != MAIN]
    of_cohort = {name: manifest.of_cohort(name).of_split("train").targets(manifest.findings) for name in others}
    lines = [
        f"  {finding}: {(labels == 1).sum():,} positive and {(labels == 0).sum():,} negative images of {name} train"
        for finding in asking.asked
        if finding in manifest.findings
        for name, table in of_cohort.items()
        if ((labels := table[:, manifest.findings.index(finding)]) >= 0).any()
    ]
    if not lines:
        raise UsageError(
            f"--track {OUTSIDE_LABELS} trains on labels that other cohorts have of {', '.join(asking.asked[:5])}, but "
            f"{', '.join(others) or 'no other cohort is given, by --cohort NAME=DIRECTORY'}"
            f"{' labels none of them' if others else ''}: leave the track out."
        )
    return lines


def _fold_lines(asking: Asking) -> list[str]:
    return [
        f"Chosen by {counted(asking.folds, 'fold')} of seen findings, each hidden from one of a trial's models:",
        *(f"  fold {k}: {', '.join(asking.of_fold(k))}" for k in range(asking.folds)),
    ]


def _labelled(manifest: Manifest, finding: str) -> bool:
    return bool(np.any(manifest.of_split(*CHOSEN_ON).targets((finding,)) >= 0))
