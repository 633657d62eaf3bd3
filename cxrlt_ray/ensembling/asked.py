"""An ensemble asked for findings by their names: those of its task it answers itself, others its members by text.

What the members were never trained on cannot be weighed finding by finding: every such finding gets the members' mean
weights, of those members that can be asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.ensembling.pool import Say
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.storage import Store
from cxrlt_ray.text.descriptions import check_finding, kept_descriptions, own_labels, read_descriptions

if TYPE_CHECKING:
    from cxrlt_ray.models import ModelSpec

NEAR = 0.99  # cosine between a stored label embedding and the same one computed again in half precision


@dataclass(frozen=True)
class Asked:
    """What an ensemble of M members is asked for beside its own findings.

    findings: [A]. embeddings: float32 [A, E] by member, of its own text encoder; None where it cannot be asked.
    weights: float64 [M], of sum 1.
    """

    findings: tuple[str, ...]
    embeddings: tuple[np.ndarray | None, ...]
    weights: np.ndarray

    def rows(self, member: int) -> dict[str, np.ndarray]:
        """A member's embedding [E] of each finding; {} where it cannot be asked."""
        embeddings = self.embeddings[member]
        return {} if embeddings is None else dict(zip(self.findings, embeddings, strict=True))

    def __repr__(self) -> str:  # names the stored scores of a killed run
        return f"Asked({self.findings}, {[None if e is None else e.tobytes().hex() for e in self.embeddings]})"


def ask(
    trials: Sequence[Trial],
    findings: Sequence[str],
    weights: np.ndarray,
    names: Sequence[str],
    descriptions: str | None = None,
    say: Say = print,
    track: str | None = None,
) -> Asked | None:
    """What to ask an ensemble's members [M] for: `names` without its own `findings`; None if nothing is left.

    weights: float64 [M, C]. descriptions: a file or folder of the user's, which come before those that the members'
    runs have kept. track: of an ensemble whose own findings are asked for by text. Lines say which findings are
    answered how and by whom. Raises UsageError where no member can be asked, and for a finding that has no description.
    """
    own = own_labels(findings, names)
    if twice := next((both for both in combinations(own, 2) if own[both[0]] == own[both[1]]), None):
        raise UsageError(f"--ask names {' and '.join(twice)}, which is one finding: findings are named each once.")
    for name, finding in own.items():
        how = f"were trained on {finding}, so that its own output answers, not its text"
        if track is not None:
            how = f"were chosen to answer for {finding} by text (track {track}), as they do here"
        say(f"{name}: the members {how}")
    others = tuple(name for name in names if name not in own)
    if not others:
        return None
    for name in others:
        check_finding(name)
    reasons, embeddings = [], []
    for trial in trials:
        reason, rows = _embeddings(trial, others, descriptions, say)
        reasons.append(reason)
        embeddings.append(rows)
    able = np.array([rows is not None for rows in embeddings])
    refused = [f"{trial.name}: {reason}" for trial, reason in zip(trials, reasons, strict=True) if reason]
    if not able.any():
        raise UsageError(f"no member of this ensemble can be asked for {', '.join(others)}: {refused[0]}")
    for line in refused:
        say(f"Not asked: {line}")
    shares = np.where(able, weights.mean(axis=1), 0.0)
    shares = shares / shares.sum() if shares.sum() else able / able.sum()
    seen = own_labels(spec_of(trials[0])[1], others)
    for group, known in ((tuple(seen), True), (tuple(name for name in others if name not in seen), False)):
        if group:
            trained = "They learned labels of that" if known else "They were not trained on that"
            say(
                f"{', '.join(group)}: asked by text of {able.sum()} of {len(able)} members, with their mean weights. "
                f"{trained}, and no validation image says how good the answers are"
            )
    return Asked(others, tuple(embeddings), shares)


def _embeddings(
    trial: Trial, names: tuple[str, ...], descriptions: str | None, say: Say
) -> tuple[str, np.ndarray | None]:
    """Why a member cannot be asked, or "", and the label embeddings of `names` as its own were made."""
    from cxrlt_ray.models import label_embeddings
    from cxrlt_ray.models.asking import why_not

    spec, findings = spec_of(trial)
    if reason := why_not(spec.head, spec.fusion):
        return reason, None
    if spec.queries:
        return "", label_embeddings.read(spec.queries, names)
    assert spec.text is not None
    from cxrlt_ray.text.finding_embeddings import finding_embeddings

    own = (*kept_descriptions(run_of(trial)), *(read_descriptions(descriptions) if descriptions else ()))
    rows = finding_embeddings((*names, *findings), spec.text, spec.prompts, own)
    _check_same(trial, spec, rows[len(names) :], say)
    return "", rows[: len(names)]


def run_of(trial: Trial) -> Store:
    """The directory of a trial's run."""
    return Store(trial.store.absolute().uri.rpartition("/trials/")[0])


def spec_of(trial: Trial) -> tuple[ModelSpec, tuple[str, ...]]:
    """What the first checkpoint of a trial says of its model and findings."""
    from cxrlt_ray.models import ModelSpec

    content = json.loads(trial.store.read(f"{trial.checkpoints[0]}/model.json"))
    return ModelSpec(**content["spec"]), tuple(content["findings"])


def _check_same(trial: Trial, spec: ModelSpec, again: np.ndarray, say: Say) -> None:
    """Say where the embeddings of a member's own findings are not what they were when it was trained.

    Raises CxrltError where they have another length: then the text encoder is another.
    """
    from safetensors import safe_open

    with (
        trial.store.fetched(f"{trial.checkpoints[0]}/model.safetensors") as path,
        safe_open(path, framework="np") as tensors,
    ):
        stored = tensors.get_tensor("head.embeddings")
    if stored.shape != again.shape:
        raise CxrltError(
            f"text encoder '{spec.text}' gives {again.shape[1]} numbers a text, {trial.name} was trained with "
            f"{stored.shape[1]}: it is not the same encoder any more."
        )
    near = (stored * again).sum(axis=1) / np.linalg.norm(stored, axis=1).clip(min=1e-12)
    if changed := int((near < NEAR).sum()):
        say(
            f"{trial.name}: the texts of {changed} of {len(near)} findings have other embeddings than in training: "
            f"descriptions, prompts or encoder '{spec.text}' have changed, and answers by text may be off"
        )


def answers(scores: np.ndarray, findings: Sequence[str], asked: Asked | None, names: Sequence[str]) -> np.ndarray:
    """The columns [N, len(names)] of scores [N, C + A] that answer for `names`, in their order."""
    own = own_labels(findings, names)
    columns = [*findings, *(asked.findings if asked else ())]
    return scores[:, [columns.index(own.get(name, name)) for name in names]]
