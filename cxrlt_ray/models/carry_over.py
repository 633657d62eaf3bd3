"""A trial's next stage: the model of the stage before at another resolution, with another head, pool or fusion.

The backbone is carried whole; position embeddings and bias tables are resampled as timm does it for pretrained weights.
A head or fusion of the same name whose tensors have the same shapes is carried, another one is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.models.backbones import unfilled
from cxrlt_ray.models.weights import fitted

if TYPE_CHECKING:
    from cxrlt_ray.models import Classifier, ModelSpec


def carried(
    previous: Classifier, was: ModelSpec, spec: ModelSpec, findings: int | Sequence[str], fresh_head: bool = False
) -> Classifier:
    """The model of `spec` with what `previous`, of `was`, has for it. fresh_head: a new head in any case (cRT, Kang et
    al. 2020). Drop rates are the new spec's, weights of `checkpoint` or of the hub are not looked at.

    Raises CxrltError, naming what does not fit, where the backbone cannot be carried whole.
    """
    from cxrlt_ray.models import Classifier

    if was.backbone != spec.backbone:
        raise CxrltError(f"backbone '{was.backbone}' of the stage before is not '{spec.backbone}': stages share one.")
    given = getattr(previous.head, "embeddings", None) if was.queries == spec.queries else None
    model = Classifier(spec, findings, making=unfilled, given=given, made=previous.recipe)
    _fill(model.backbone, previous.backbone, spec)
    if was.head == spec.head and not fresh_head:
        _fill_if_alike(model.head, previous.head)
    if was.fusion == spec.fusion and model.fusion is not None and previous.fusion is not None:
        _fill_if_alike(model.fusion, previous.fusion)
    return model


def _fill(backbone: torch.nn.Module, before: torch.nn.Module, spec: ModelSpec) -> None:
    state, own = fitted(before.state_dict(), backbone), backbone.state_dict()
    for name, tensor in own.items():
        if name not in state or state[name].shape != tensor.shape:
            had = f"is {tuple(state[name].shape)}, not {tuple(tensor.shape)}" if name in state else "is missing"
            raise CxrltError(
                f"the stage before's backbone '{spec.backbone}' cannot be carried to {spec.resolution} px and "
                f"{spec.in_chans} channels: {name} {had}."
            )
    backbone.load_state_dict({name: state[name] for name in own})


def _fill_if_alike(module: torch.nn.Module, before: torch.nn.Module) -> None:
    """Take the tensors of `before` where none is of another shape; one that `before` lacks stays new."""
    own, state = module.state_dict(), before.state_dict()
    both = [name for name in own if name in state]
    if all(own[name].shape == state[name].shape for name in both):
        module.load_state_dict({name: state[name] for name in both}, strict=False)
