"""What a sweep that asks for findings by text is made of: the seen findings, their folds, and labels put out of reach.

The labels that the data has of the asked findings are taken out of training and validation before anything reads them;
the images that are scored at the end keep theirs, and lose those of the seen findings.
"""

from __future__ import annotations

import dataclasses
import math
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
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.space import Space

if TYPE_CHECKING:
    from cxrlt_ray.text.corpus import Corpus

FOLD_SIZE = 5  # findings of a fold, where there are enough: one head, two medium, two tail


def asking_of(request: SweepRequest, manifest: Manifest) -> Asking:
    """The seen findings of the data and their folds. Raises UsageError where they are too few for the folds."""
    from cxrlt_ray.search.run_texts import own_descriptions
    from cxrlt_ray.text.groups import families, finding_folds, parents

    targets = manifest.of_cohort(MAIN).of_split("train").targets(manifest.findings)
    labelled, positives = (targets >= 0).sum(axis=0), (targets == 1).sum(axis=0)
    known = (positives > 0) & (positives < labelled)
    own = own_names(manifest.findings, request.asked)  # a finding that the data labels is asked for by the data's name
    asked = tuple(own.get(name, name) for name in request.asked)
    rows = [c for c, name in enumerate(manifest.findings) if known[c] and name not in asked]
    seen = tuple(manifest.findings[c] for c in rows)
    if request.choose_by == MINED:
        return Asking(asked, seen, (ALWAYS,) * len(seen), MINED, by_mined=True)
    folds, related = request.models, parents(own_descriptions(request))
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


def with_mined(manifest: Manifest, asking: Asking, reports: str, address: str | None) -> Manifest:
    """The manifest with labels of the asked findings where models are trained and chosen, as reports say.

    Raises UsageError where no study that trains or validates has a report.
    """
    from cxrlt_ray.labelling.reports import read_reports
    from cxrlt_ray.text.mining import beside, mine, of_splits

    mined = mine(read_reports(reports), asking.asked, address=address)
    table = beside(manifest, of_splits(mined, manifest))
    for finding in asking.asked:
        targets = table.of_split(*CHOSEN_ON).targets((finding,))
        print(f"  {finding}: {(targets == 1).sum():,} positive and {(targets == 0).sum():,} negative images mined")
    return table


def corpora_of(corpus: Corpus, asking: Asking | None, request: SweepRequest) -> dict[str, Corpus]:
    """The texts of a run by file name: on track scrubbed each fold's without what is hidden from its model."""
    from cxrlt_ray.text.naming import read_phrases

    if asking is None or asking.track != SCRUBBED:
        return {CORPUS: corpus}
    phrases = read_phrases(request.scrub) if request.scrub else None
    base = corpus.scrubbed(asking.asked, request.address, phrases)
    print(f"Scrubbed of {', '.join(asking.asked[:5])}: {base.about.removed:,} sentences left out of the reports")
    folds = {
        asking.corpus_of(k): base.scrubbed(sorted(asking.judged(k)), request.address, phrases)
        for k in range(asking.folds)
    }
    return {CORPUS: base, **folds}


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
