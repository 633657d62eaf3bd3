"""Folds of findings, to score zero-shot without labels of the unseen: leave some of the seen findings out.

A fold's findings are trained without their labels and asked for by text alone. Relatives are never apart: the labels
of Rib Fracture would give away Fracture. Folds hold the same mixture of head, medium and tail findings as far as that
allows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from cxrlt_ray.data.asking import ALWAYS
from cxrlt_ray.data.column_names import folded
from cxrlt_ray.data.tasks import GROUPS, HEAD, MEDIUM, NO_FINDING, TAIL, rarity_of
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.closure import HIERARCHY
from cxrlt_ray.labelling.rules import load_rules
from cxrlt_ray.text.descriptions import Description, shipped

LEAST = {HEAD: 1, MEDIUM: 2, TAIL: 2}  # findings of a fold, where there are enough

Fold = list[int]  # the numbers of its groups


def finding_folds(
    findings: Sequence[str],
    prevalence: np.ndarray,
    folds: int,
    seed: int = 0,
    hierarchy: Mapping[str, Sequence[str]] | None = None,
) -> np.ndarray:
    """The fold that leaves out each of `findings`, int [C] from 0; ALWAYS for Normal, which is always trained.

    prevalence: float [C], shares of positives in training; nan (nowhere labelled) counts as tail. hierarchy: finding ->
    the more general ones that it gives away; default: `parents` of all findings. A finding and its ancestors share a
    fold, also where a generation between them is not among `findings`. Deterministic in its arguments.

    Folds are filled one group of relatives after the other, then groups are moved and exchanged while that lowers, in
    this order: empty folds, findings that LEAST asks for and that are missing, inequality of the kinds, of the sizes.

    Raises UsageError for fewer than 2 folds, for more than there are groups, and where shapes differ.
    """
    if len(findings) != len(prevalence):
        raise UsageError(f"{len(findings)} findings and {len(prevalence)} prevalences: give one a finding.")
    groups = _relatives(_to_divide(findings), findings, hierarchy)
    if not 2 <= folds <= len(groups):
        raise UsageError(
            f"{folds} folds of findings: give 2 to {len(groups)}, which is how many groups of unrelated findings there "
            f"are among these {len(findings)} (Normal is in none)."
        )
    rarity = [rarity_of(float(share)) for share in prevalence]
    kinds = np.array([[sum(rarity[k] == kind for k in group) for kind in GROUPS] for group in groups])
    order = random.Random(seed).sample(range(len(groups)), len(groups))
    order.sort(key=lambda group: tuple(-kinds[group]))  # large groups of frequent findings first; equal ones at random
    result = np.full(len(findings), ALWAYS)
    for number, fold in enumerate(_settled(_filled(order, kinds, folds), kinds)):
        for group in fold:
            result[groups[group]] = number
    return result


def families(findings: Sequence[str], hierarchy: Mapping[str, Sequence[str]] | None = None) -> int:
    """How many groups of relatives `findings` are, Normal left out: so many folds there can be."""
    return len(_relatives(_to_divide(findings), findings, hierarchy))


def _to_divide(findings: Sequence[str]) -> list[int]:
    return [k for k, finding in enumerate(findings) if finding.lower() not in NO_FINDING]


def parents(descriptions: Sequence[Description] = ()) -> dict[str, tuple[str, ...]]:
    """Finding -> the more general ones that it gives away.

    From CheXpert's hierarchy, from what label_rules/ say that a finding implies, and from the `parents` of
    descriptions: the package's and `descriptions`, the user's own. A finding of the user's and its aliases are one:
    each gives away the others, and what these give away.
    """
    related: dict[str, tuple[str, ...]] = {child: (parent,) for child, parent in HIERARCHY.items()}
    for finding, others in (*_implied(), *((each.finding, each.parents) for each in (*shipped(), *descriptions))):
        if others:
            related[finding] = tuple(dict.fromkeys((*related.get(finding, ()), *others)))
    for own in descriptions:
        for label in own.labels if own.aliases else ():
            same = (other for other in own.labels if other != label)
            related[label] = tuple(dict.fromkeys((*related.get(label, ()), *same)))
    return related


@lru_cache(maxsize=1)
def _implied() -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((rule.finding, rule.implies) for rule in load_rules().every)


def _relatives(
    members: Sequence[int], findings: Sequence[str], hierarchy: Mapping[str, Sequence[str]] | None
) -> list[list[int]]:
    """`members`, numbers of findings, in groups of relatives, in their order."""
    alias = {folded(label): folded(each.finding) for each in shipped() for label in each.labels}

    def form(name: str) -> str:
        return alias.get(folded(name), folded(name))

    related: dict[str, set[str]] = {}
    for child, others in (parents() if hierarchy is None else hierarchy).items():
        related.setdefault(form(child), set()).update(map(form, others))
    group_of = {k: [k] for k in members}
    ancestors = {k: _ancestors(form(findings[k]), related) for k in members}
    for a, b in combinations(members, 2):
        is_related = form(findings[a]) in ancestors[b] or form(findings[b]) in ancestors[a]
        if is_related and group_of[a] is not group_of[b]:
            group_of[a].extend(group_of[b])
            group_of.update(dict.fromkeys(group_of[b], group_of[a]))
    return [sorted(group) for k, group in group_of.items() if k == min(group)]


def _ancestors(name: str, related: Mapping[str, set[str]]) -> set[str]:
    """A finding's name and those of all its ancestors."""
    result, waiting = {name}, [name]
    while waiting:
        above = related.get(waiting.pop(), set()) - result
        result |= above
        waiting += above
    return result


def _filled(order: Sequence[int], kinds: np.ndarray, count: int) -> list[Fold]:
    """Folds, each group in turn in the one where it costs least."""
    folds: list[Fold] = [[] for _ in range(count)]
    for group in order:
        trials = [[*folds[:k], [*folds[k], group], *folds[k + 1 :]] for k in range(count)]
        folds = min(trials, key=lambda trial: _cost(trial, kinds))
    return folds


def _settled(folds: list[Fold], kinds: np.ndarray) -> list[Fold]:
    """Folds that no move of a group and no exchange of two improves."""
    cost = _cost(folds, kinds)
    while True:
        better = next(((trial, c) for trial in _neighbours(folds) if (c := _cost(trial, kinds)) < cost), None)
        if better is None:
            return folds
        folds, cost = better


def _neighbours(folds: list[Fold]) -> Iterator[list[Fold]]:
    """Folds with one group moved, or two of different folds exchanged."""
    for a, b in combinations(range(len(folds)), 2):
        for moved_a in ([], *([group] for group in folds[a])):
            for moved_b in ([], *([group] for group in folds[b])):
                if moved_a or moved_b:
                    trial = list(folds)
                    trial[a] = [group for group in folds[a] if group not in moved_a] + moved_b
                    trial[b] = [group for group in folds[b] if group not in moved_b] + moved_a
                    yield trial


def _cost(folds: list[Fold], kinds: np.ndarray) -> tuple[int, int, int, int]:
    """Empty folds, missing findings, squared counts of kinds, squared sizes. kinds: int [groups, GROUPS]."""
    counts = np.array([kinds[fold].sum(axis=0) for fold in folds])
    sizes = counts.sum(axis=1)
    missing = np.maximum([LEAST[kind] for kind in GROUPS] - counts, 0).sum()
    return int((sizes == 0).sum()), int(missing), int((counts**2).sum()), int((sizes**2).sum())
