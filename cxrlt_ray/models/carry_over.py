"""A trial's next stage: the model of the stage before at another resolution, with another head, pool or fusion.

The backbone is carried over whole; position embeddings and bias tables are resampled as timm does it for pretrained
weights. A head or fusion of the same name whose tensors have the same shapes is carried over, any other starts anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.models.adapters import weights_of
from cxrlt_ray.models.backbones import skip_init
from cxrlt_ray.models.classifier import Classifier
from cxrlt_ray.models.spec import ModelSpec
from cxrlt_ray.models.weights import fitted


def carry(
    previous: Classifier,
    previous_spec: ModelSpec,
    spec: ModelSpec,
    findings: int | Sequence[str],
    fresh_head: bool = False,
    embeddings: torch.Tensor | None = None,
) -> Classifier:
    """The model of `spec` with every weight of `previous` that fits it.

    fresh_head: a new head in any case (cRT, Kang et al. 2020). Drop rates are the new spec's; its `checkpoint` and the
    hub's weights are ignored. embeddings: label embeddings [C, E] instead of those that `spec` names, where its texts
    are not those of the stage before. Raises CxrltError, naming the tensor, where the backbone cannot be carried over
    whole.
    """
    if previous_spec.backbone != spec.backbone:
        raise CxrltError(
            f"backbone '{previous_spec.backbone}' of the stage before is not '{spec.backbone}': stages share one."
        )
    same_texts = previous_spec.label_texts == spec.label_texts
    if same_texts and (kept := getattr(previous.head, "embeddings", None)) is not None:
        embeddings = kept
    model = Classifier(spec, findings, context=skip_init, embeddings=embeddings, recipe=previous.recipe)
    _fill_backbone(model.backbone, previous.backbone, spec)
    if previous_spec.head == spec.head and not fresh_head:
        _fill_if_shapes_agree(model.head, previous.head)
    if previous_spec.fusion == spec.fusion and model.fusion is not None and previous.fusion is not None:
        _fill_if_shapes_agree(model.fusion, previous.fusion)
    return model


def _fill_backbone(backbone: torch.nn.Module, previous: torch.nn.Module, spec: ModelSpec) -> None:
    state, own = fitted(weights_of(previous), backbone), backbone.state_dict()
    for name, tensor in own.items():
        if name not in state or state[name].shape != tensor.shape:
            had = f"is {tuple(state[name].shape)}, not {tuple(tensor.shape)}" if name in state else "is missing"
            raise CxrltError(
                f"the stage before's backbone '{spec.backbone}' cannot be carried to {spec.resolution} px and "
                f"{spec.in_chans} channels: {name} {had}."
            )
    backbone.load_state_dict({name: state[name] for name in own})


def _fill_if_shapes_agree(module: torch.nn.Module, previous: torch.nn.Module) -> None:
    """Take the tensors of `previous` where none has another shape; one that `previous` does not have stays new.

    Label embeddings stay: the stage may ask with other texts.
    """
    own, state = module.state_dict(), previous.state_dict()
    shared = [name for name in own if name in state and name != "embeddings"]
    if all(own[name].shape == state[name].shape for name in shared):
        module.load_state_dict({name: state[name] for name in shared}, strict=False)
