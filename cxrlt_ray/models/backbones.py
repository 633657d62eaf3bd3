"""Backbones: any name that timm knows, with or without a tag, at any resolution it allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cxrlt_ray.errors import UsageError

if TYPE_CHECKING:
    from cxrlt_ray.models import ModelSpec

# pixel normalisation where it is not what timm says of the architecture: (x - 127) / 128 on 0..255
NORMALISATION = {"tf_efficientnet_lite0": ((127 / 255,) * 3, (128 / 255,) * 3)}


def known(name: str) -> bool:
    """Whether timm has this backbone; hf-hub: names are taken on trust."""
    import timm

    return name.startswith("hf-hub:") or timm.is_model(name)


def suggestions(name: str) -> list[str]:
    """The names nearest to an unknown one."""
    import timm

    return get_close_matches(name.split(".")[0], timm.list_models(), n=3)


@contextmanager
def unfilled() -> Iterator[None]:
    """Skip random initialisation: most of the time that a large model takes, for weights that are then loaded."""
    from torch import Tensor
    from torch.nn import Parameter, init
    from torch.overrides import TorchFunctionMode

    names = ("trunc_normal_", "normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_")
    skipped = {getattr(init, name) for name in names} | {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_}
    scaling = {Tensor.mul_, Tensor.add_, Tensor.clamp_}  # of random numbers, where it is done to a parameter

    class Skip(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in skipped or (func in scaling and isinstance(args[0], Parameter)):
                return args[0] if args else (kwargs or {})["tensor"]
            return func(*args, **(kwargs or {}))

    with Skip():
        yield


@lru_cache(maxsize=256)
def _drops_paths(name: str) -> bool:
    """Whether a backbone can be built with stochastic depth (a DenseNet cannot)."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            timm.create_model(name, drop_path_rate=0.1)
    except TypeError as error:
        return "drop_path_rate" not in str(error)
    return True


def create(spec: ModelSpec, pretrained: bool) -> Any:
    """A model of timm without classifier, at the spec's resolution and channels, with timm's own weights or none."""
    import timm

    options: dict[str, Any] = {"num_classes": 0, "in_chans": spec.in_chans, "pretrained": pretrained}
    if spec.drop_path:
        options["drop_path_rate"] = spec.drop_path
    if spec.drop_path and not _drops_paths(spec.backbone):
        raise UsageError(f"backbone '{spec.backbone}' has no drop path: give it `drop_path: 0` in the search space.")
    try:
        # transformers fix their grid when they are built, and timm fits position embeddings to it as it loads
        return timm.create_model(spec.backbone, img_size=spec.resolution, **options)
    except TypeError:
        return timm.create_model(spec.backbone, **options)


def make_backbone(spec: ModelSpec) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """The backbone without weights, and its mean and std for pixels in 0..1.

    Raises UsageError where timm does not know it, or cannot build it at that resolution.
    """
    import timm

    if not known(spec.backbone):
        near = ", ".join(suggestions(spec.backbone)) or "none"
        raise UsageError(f"timm has no backbone '{spec.backbone}'; near it are {near}.")
    try:
        backbone = create(spec, pretrained=False)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UsageError(f"backbone '{spec.backbone}' cannot be built at {spec.resolution} px: {error}") from None
    data = timm.data.resolve_model_data_config(backbone)
    mean, std = NORMALISATION.get(spec.backbone.split(".")[0], (data["mean"], data["std"]))
    return backbone, tuple(mean), tuple(std)
