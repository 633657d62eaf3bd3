"""A new classifier with its pretrained weights, and the check before a sweep that every one of them can be had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import label_embeddings
from cxrlt_ray.models.backbones import find_recipe, make_backbone, skip_init
from cxrlt_ray.models.classifier import Classifier, check
from cxrlt_ray.models.cost import size
from cxrlt_ray.models.heads import HEADS
from cxrlt_ray.models.spec import ModelSpec
from cxrlt_ray.models.weights import load_pretrained

if TYPE_CHECKING:
    import torch


def build(spec: ModelSpec, findings: int | Sequence[str], embeddings: torch.Tensor | None = None) -> Classifier:
    """A new classifier for `findings` (their names, or their number), with pretrained weights if `spec` says so.

    embeddings: label embeddings [C, E] instead of those that `spec` names.
    Raises CxrltError, naming the backbone, where they cannot be had; they never turn into random ones. Raises
    UsageError for a head that needs label embeddings, where `findings` are a number.
    """
    check(spec)
    if isinstance(findings, int) and embeddings is None and HEADS[spec.head].needs_embeddings:
        raise UsageError(f"head '{spec.head}' finds its label embeddings by name: give the names of the findings.")
    if not spec.pretrained:
        return Classifier(spec, findings, embeddings=embeddings)
    model = Classifier(spec, findings, context=skip_init, embeddings=embeddings)
    load_pretrained(model.backbone, spec, model.recipe)
    return model


def check_weights(specs: list[ModelSpec], findings: Sequence[str] = ()) -> None:
    """Make sure that every model can be built and its weights be had; raises naming the first that cannot.

    findings: the task's, to check that files of label embeddings have them; those of text encoders are not made here.
    """
    seen: set[tuple[str, str | None, int]] = set()
    files: set[str] = set()
    for spec in specs:
        size(spec, 40)  # with a plan's number of findings, so that the plan finds it in the cache
        recipe = find_recipe(spec.backbone)
        with skip_init():
            backbone = make_backbone(spec, recipe)[0]
        if HEADS[spec.head].needs_embeddings and findings and spec.queries and spec.queries not in files:
            files.add(spec.queries)
            label_embeddings.read(spec.queries, findings)
        key = (spec.backbone, spec.checkpoint, spec.in_chans)
        if spec.pretrained and key not in seen:
            seen.add(key)
            load_pretrained(backbone, spec, recipe)
