"""Backbones by name: timm's, timm's from a hub or folder, torchxrayvision's DenseNets, transformers' image encoders.

    convnext_small.fb_in22k_ft_in1k_384      timm's, with or without a tag
    vit_large_patch16_reg4_swiglu            timm's parts under our name (vit_variants.py)
    uniformer_base, uniformer_base.in1k      ours, by the same registry (uniformer.py)
    hf-hub:OWNER/NAME, local-dir:FOLDER      timm's format, of a hub or a folder
    xrv:densenet121-res224-all               torchxrayvision's (see hub.py)
    transformers:microsoft/rad-dino, transformers:FOLDER

A name stands for a `BackboneRecipe`. A saved model keeps it, so that it can be built again without the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.models import hub
from cxrlt_ray.models.recipe import BackboneRecipe
from cxrlt_ray.models.spec import ModelSpec
from cxrlt_ray.storage.offline import offline_where_the_hub_has_no_address

# pixel normalisation where it is not what timm says of the architecture: (x - 127) / 128 on 0..255
NORMALISATION = {f"tf_efficientnet_lite{k}": ((127 / 255,) * 3, (128 / 255,) * 3) for k in range(3)}
HUB, FOLDER, XRV, TRANSFORMERS = "hf-hub:", "local-dir:", "xrv:", "transformers:"
LIBRARIES = {XRV: "torchxrayvision", TRANSFORMERS: "transformers"}
TRIES = 24  # resolutions tried on each side of one that does not fit


def known(name: str) -> bool:
    """Whether there is such a backbone; a name that only a hub can confirm is accepted."""
    import timm

    from cxrlt_ray.models import uniformer, vit_variants  # noqa: F401  whose names timm then knows

    if name.startswith(HUB):
        return "/" in name
    if name.startswith(FOLDER):
        return (Path(name.removeprefix(FOLDER)) / "config.json").is_file()
    if name.startswith(XRV):
        return name.removeprefix(XRV) in hub.DENSENETS
    if name.startswith(TRANSFORMERS):
        return hub.known(name.removeprefix(TRANSFORMERS))
    if ":" in name or "/" in name or not timm.is_model(name):
        return False
    return "." not in name or name in timm.list_pretrained(name.split(".")[0] + "*")


def suggestions(name: str) -> list[str]:
    """The names nearest to an unknown one."""
    import timm

    if name.startswith(XRV):
        return [XRV + near for near in get_close_matches(name.removeprefix(XRV), hub.DENSENETS, n=3, cutoff=0)]
    if name.startswith(TRANSFORMERS):
        return [TRANSFORMERS + known_name for known_name in hub.CONFIGS] + [TRANSFORMERS + "FOLDER"]
    if name.startswith((HUB, FOLDER)):
        return []
    base, _, tag = name.partition(".")
    if timm.is_model(base) and tag:
        return get_close_matches(name, timm.list_pretrained(base + ".*"), n=3, cutoff=0)
    return get_close_matches(base, timm.list_models(), n=3)


@contextmanager
def skip_init() -> Iterator[None]:
    """Skip random initialisation, most of the time that building a large model takes, where weights are loaded next."""
    from torch import Tensor
    from torch.nn import Parameter, init
    from torch.overrides import TorchFunctionMode

    names = ("trunc_normal_", "normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_")
    skipped = {getattr(init, name) for name in names} | {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_}
    scaling = {Tensor.mul_, Tensor.add_, Tensor.clamp_}  # of random numbers, where it is done to a parameter

    class Skip(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (Tensor.normal_, Tensor.uniform_) and "generator" in (kwargs or {}):
                # torch's trunc_normal_ draws until all values lie in bounds: zeros do, uninitialised memory may never
                return args[0].zero_()
            if func in skipped or (func in scaling and isinstance(args[0], Parameter)):
                return args[0] if args else (kwargs or {})["tensor"]
            return func(*args, **(kwargs or {}))

    with Skip():
        yield


@lru_cache(maxsize=256)
def _has_drop_path(name: str) -> bool:
    """Whether a backbone can be built with stochastic depth (a DenseNet cannot)."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            timm.create_model(name, drop_path_rate=0.1)
    except TypeError as error:
        return "drop_path_rate" not in str(error)
    return True


def find_recipe(name: str) -> BackboneRecipe:
    """What a name stands for. Raises UsageError for an unknown one, CxrltError where a hub's config cannot be read."""
    if not known(name):
        if name.startswith(FOLDER):
            raise UsageError(f"backbone '{name}': the folder holds no config.json; save_for_hf of timm writes one.")
        near = ", ".join(suggestions(name)) or "none"
        raise UsageError(
            f"{LIBRARIES.get(name.partition(':')[0] + ':', 'timm')} has no backbone '{name}'; near it are {near}."
        )
    if name.startswith(XRV):
        return hub.densenet(name.removeprefix(XRV))
    if name.startswith(TRANSFORMERS):
        return hub.encoder(name.removeprefix(TRANSFORMERS))
    if name.startswith((HUB, FOLDER)):
        return _published(name)
    return BackboneRecipe("timm", name)


@lru_cache(maxsize=256)
def _published(name: str) -> BackboneRecipe:
    from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

    try:
        with offline_where_the_hub_has_no_address():
            read = load_model_config_from_hf if name.startswith(HUB) else load_model_config_from_path
            published, architecture, options = read(name.partition(":")[2])
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CxrltError(
            f"backbone '{name}': its config.json cannot be had ({reason}); fetch the model on a machine with internet "
            f"and give its folder by `backbone: {FOLDER}PATH`."
        ) from None
    mean, std = published.get("mean", (0.485, 0.456, 0.406)), published.get("std", (0.229, 0.224, 0.225))
    return BackboneRecipe("timm", architecture, dict(options), tuple(mean), tuple(std))


def create(spec: ModelSpec, recipe: BackboneRecipe, pretrained: bool = False) -> Any:
    """The backbone without classifier, at the spec's resolution and channels, with timm's own weights or none."""
    if recipe.by == "transformers":
        return hub.create(spec, recipe)
    import timm

    name = spec.backbone if pretrained else recipe.name
    options: dict[str, Any] = {**recipe.options, "num_classes": 0, "in_chans": spec.in_chans, "pretrained": pretrained}
    if spec.drop_path:
        options["drop_path_rate"] = spec.drop_path
    if spec.drop_path and not _has_drop_path(recipe.name):
        raise UsageError(f"backbone '{spec.backbone}' has no drop path: give it `drop_path: 0` in the search space.")
    try:
        # transformers fix their grid when they are built, and timm fits position embeddings to it as it loads
        return timm.create_model(name, **{**options, "img_size": spec.resolution})
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        options.pop("img_size", None)
        return timm.create_model(name, **options)


def make_backbone(
    spec: ModelSpec, recipe: BackboneRecipe | None = None
) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """The backbone without weights, and its mean and std for pixels in 0..1.

    Raises UsageError where there is none of that name, or it cannot be built at that resolution.
    """
    import timm

    recipe = recipe or find_recipe(spec.backbone)
    try:
        backbone = create(spec, recipe)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UsageError(_error_message(spec, recipe, f"cannot be built at {spec.resolution} px", error)) from None
    patch = patch_of(backbone)
    if patch and spec.resolution % patch:
        below = spec.resolution // patch * patch
        near = " and ".join(str(edge) for edge in (below, below + patch) if edge)
        raise UsageError(
            f"backbone '{spec.backbone}' has patches of {patch} px, which do not fill {spec.resolution} px: "
            f"the nearest resolutions are {near}."
        )
    data = (
        timm.data.resolve_model_data_config(backbone) if not recipe.mean else {"mean": recipe.mean, "std": recipe.std}
    )
    mean, std = NORMALISATION.get(recipe.name.split(".")[0], (data["mean"], data["std"]))
    return backbone, tuple(mean), tuple(std)


def patch_of(backbone: Any) -> int | None:
    """The edge of a transformer's patches, where its grid must fill the image."""
    embed = getattr(backbone, "patch_embed", None)
    size, proj = getattr(embed, "patch_size", None), getattr(embed, "proj", None)
    overlapping = getattr(proj, "kernel_size", 0) != getattr(proj, "stride", 0)  # PVT's are padded
    if size is None or overlapping or getattr(embed, "dynamic_img_pad", False):
        return None
    return int(size if isinstance(size, int) else size[0])


def resolution_error(spec: ModelSpec, recipe: BackboneRecipe, error: Exception) -> UsageError:
    """The error for a backbone that was built but takes no images of that resolution."""
    return UsageError(_error_message(spec, recipe, f"takes no images of {spec.resolution} px", error))


def _error_message(spec: ModelSpec, recipe: BackboneRecipe, what: str, error: Exception) -> str:
    near = [] if _first_accepted(spec, recipe, [spec.resolution]) else nearest_resolutions(spec, recipe)
    mend = f"; the nearest it takes: {' and '.join(map(str, near))} px" if near else ""
    return f"backbone '{spec.backbone}' {what} ({str(error).splitlines()[0] if str(error) else error!r}){mend}."


def nearest_resolutions(spec: ModelSpec, recipe: BackboneRecipe) -> list[int]:
    """The nearest resolutions below and above that the backbone takes: multiples of 32, 16 or 8, tried on meta."""
    step = next((step for step in (32, 16) if spec.resolution > 4 * step), 8)
    first = spec.resolution // step * step
    below = [edge for k in range(TRIES) if 0 < (edge := first - k * step) < spec.resolution]
    above = [first + k * step for k in range(1, TRIES + 1)]
    accepted = [_first_accepted(spec, recipe, edges) for edges in (below, above)]
    return [edge for edge in accepted if edge]


def _first_accepted(spec: ModelSpec, recipe: BackboneRecipe, edges: list[int]) -> int | None:
    import dataclasses

    import torch

    for edge in edges:
        try:
            with torch.device("meta"), torch.no_grad():
                backbone = create(dataclasses.replace(spec, resolution=edge, drop_path=0.0), recipe).eval()
                backbone.forward_head(backbone.forward_features(torch.empty(1, spec.in_chans, edge, edge)))
        except (RuntimeError, ValueError, AssertionError, TypeError):
            continue
        return edge
    return None
