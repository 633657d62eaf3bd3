"""What a model costs, counted on torch's meta device: floating-point operations and numbers in a checkpoint."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import torch

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models.adapters import first_layers
from cxrlt_ray.models.backbones import resolution_error
from cxrlt_ray.models.classifier import Classifier
from cxrlt_ray.models.heads import HEADS
from cxrlt_ray.models.spec import ModelSpec


def flops(spec: ModelSpec, findings: int) -> int:
    """Floating-point operations (a multiplication and an addition are two) to score one image."""
    return size(spec, findings)[0]


def size(spec: ModelSpec, findings: int) -> tuple[int, int]:
    """Floating-point operations to score one image, and how many numbers a checkpoint holds; no memory is used.

    With head and fusion (a study of one image). Raises UsageError where the backbone can be built for that resolution
    but takes no such images.
    """
    without_influence: dict[str, Any] = {"pretrained": False, "checkpoint": None, "drop_rate": 0.0, "drop_path": 0.0}
    without_influence |= {"prompts": ModelSpec.prompts}
    return _size(dataclasses.replace(spec, **without_influence), findings)


def share_of_layers(spec: ModelSpec, count: int) -> float:
    """The share of the backbone's floating-point operations, 0..1, that its first `count` layers do.

    Raises as `size` and `adapters.first_layers` do.
    """
    return _share_of_layers(ModelSpec(spec.backbone, spec.resolution, pretrained=False, in_chans=spec.in_chans), count)


def feature_shape(spec: ModelSpec) -> tuple[int, int]:
    """(N, D) of an image's features, as Classifier.features gives them; no memory is used. Raises as `size` does."""
    head = HEADS[spec.head]
    without_influence: dict[str, Any] = {"pretrained": False, "checkpoint": None, "drop_rate": 0.0, "drop_path": 0.0}
    without_influence |= {name: getattr(ModelSpec, name) for name in ("queries", "text", "prompts", *head.SETTINGS)}
    if head.needs_embeddings:  # one that is given the same features, and needs no embeddings
        without_influence["head"] = "ml_decoder" if head.needs_map else "linear"
    return _feature_shape(dataclasses.replace(spec, **without_influence))


@lru_cache(maxsize=1024)
def _feature_shape(spec: ModelSpec) -> tuple[int, int]:
    with torch.device("meta"):
        model = Classifier(spec, 2).eval()
        try:
            shape = model.features(torch.empty(1, spec.resolution, spec.resolution, dtype=torch.uint8)).shape
        except UsageError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            raise resolution_error(spec, model.recipe, error) from None
    return int(shape[1]), int(shape[2])


@lru_cache(maxsize=1024)
def _share_of_layers(spec: ModelSpec, count: int) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = Classifier(spec, 2).eval()
        modules = {name.rpartition(".")[0] for name in first_layers(model.backbone, count)} - {""}
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, spec.resolution, spec.resolution, dtype=torch.uint8))
    done = counter.get_flop_counts()  # by module; without those that have none, as norms
    within = {name for name in modules if any(name.startswith(f"{other}.") for other in modules)}  # others' own counts
    of_layers = sum(sum(done.get(f"Classifier.backbone.{name}", {}).values()) for name in modules - within)
    return of_layers / counter.get_total_flops()


@lru_cache(maxsize=1024)
def _size(spec: ModelSpec, findings: int) -> tuple[int, int]:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = Classifier(spec, findings).eval()
        try:
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, spec.resolution, spec.resolution, dtype=torch.uint8))
        except UsageError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            raise resolution_error(spec, model.recipe, error) from None
    return counter.get_total_flops(), sum(tensor.numel() for tensor in model.state_dict().values())
