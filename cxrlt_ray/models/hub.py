"""Backbones from other libraries: torchxrayvision's DenseNets and transformers' image encoders (RAD-DINO).

`xrv:NAME`: a chest X-ray DenseNet-121 (Cohen et al. 2022). The architecture is timm's densenet121 on one channel,
tensor for tensor; the library (extra `xrv`) is needed only to download the weights, not with `checkpoint`.

`transformers:NAME`: an image encoder of the hub or of a folder; the library (extra `transformers`) builds it. RAD-DINO
(Perez-Garcia et al. 2025) is known without the hub: a ViT-B/14 of DINOv2 at 518 px.
"""

from __future__ import annotations

import copy
import importlib.util
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.models.recipe import BackboneRecipe
from cxrlt_ray.models.spec import ModelSpec
from cxrlt_ray.storage.offline import offline_where_the_hub_has_no_address

DENSENETS = tuple(f"densenet121-res224-{x}" for x in ("all", "nih", "pc", "chex", "rsna", "mimic_nb", "mimic_ch"))
# microsoft/rad-dino: its config.json, what differs from Dinov2Config, and its preprocessor_config.json
CONFIGS: dict[str, dict[str, Any]] = {"microsoft/rad-dino": {"model_type": "dinov2", "image_size": 518}}
NORMALISATION = {"microsoft/rad-dino": ((0.5307,) * 3, (0.2583,) * 3)}
EXTRAS = {"torchxrayvision": "pip install 'cxrlt-ray[xrv]'", "transformers": "pip install 'cxrlt-ray[transformers]'"}


def need(package: str, name: str) -> Any:
    """The imported package. Raises CxrltError naming its extra where it is not installed."""
    if importlib.util.find_spec(package) is None:
        raise CxrltError(f"backbone '{name}' needs {package}: {EXTRAS[package]}.")
    return importlib.import_module(package)


def known(name: str) -> bool:
    """Whether transformers may have it: a folder with config.json, or a hub's OWNER/NAME (not checked)."""
    path = Path(name)
    return (path / "config.json").is_file() or (not path.is_absolute() and name.count("/") == 1 and name[0] != ".")


def densenet(name: str) -> BackboneRecipe:
    """Pixels as by torchxrayvision's normalize(): (2 * x - 1) * 1024 of 0..1."""
    return BackboneRecipe("timm", "densenet121", {}, (0.5,), (1 / 2048,))


def densenet_weights(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a DenseNet under timm's names (the same); downloads them once, as torchxrayvision does."""
    model = need("torchxrayvision", f"xrv:{name}").models.DenseNet(weights=name)
    return {key: tensor for key, tensor in model.state_dict().items() if key.startswith("features.")}


def encoder(name: str) -> BackboneRecipe:
    """The configuration and normalisation of an image encoder. Raises CxrltError where they cannot be had."""
    if name in CONFIGS:
        return BackboneRecipe("transformers", name, CONFIGS[name], *NORMALISATION[name])
    transformers = need("transformers", f"transformers:{name}")
    try:
        with offline_where_the_hub_has_no_address():
            config = transformers.AutoConfig.from_pretrained(name)
            processor, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CxrltError(
            f"backbone 'transformers:{name}': its config.json and preprocessor_config.json cannot be had ({reason}); "
            "fetch them on a machine with internet and give their folder by `backbone: transformers:FOLDER`."
        ) from None
    if "image_mean" not in processor or "image_std" not in processor:
        raise CxrltError(f"backbone 'transformers:{name}': preprocessor_config.json has no image_mean and image_std.")
    options = {**config.to_diff_dict(), "model_type": config.model_type}
    return BackboneRecipe("transformers", name, options, tuple(processor["image_mean"]), tuple(processor["image_std"]))


def create(spec: ModelSpec, recipe: BackboneRecipe) -> HubBackbone:
    """An image encoder of transformers without weights."""
    transformers = need("transformers", spec.backbone)
    options = {key: value for key, value in recipe.options.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(recipe.options["model_type"], **options)
    config.num_channels = spec.in_chans
    if hasattr(config, "use_mask_token"):
        config.use_mask_token = False  # used in its pretraining only
    if spec.drop_path and not hasattr(config, "drop_path_rate"):
        raise UsageError(f"backbone '{spec.backbone}' has no drop path: give it `drop_path: 0` in the search space.")
    if spec.drop_path:
        config.drop_path_rate = spec.drop_path
    return HubBackbone(transformers.AutoModel.from_config(config), config)


def encoder_weights(name: str) -> dict[str, torch.Tensor]:
    """The tensors of an encoder of the hub or of a folder, under its own names."""
    return _weights_of(need("transformers", f"transformers:{name}").AutoModel, name)


def _weights_of(kind: Any, name: str | None, **options: Any) -> dict[str, torch.Tensor]:
    """The tensors that a class of transformers reads, without those that it initialises because they are missing."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # its report of what it initialised
    model, info = kind.from_pretrained(name, output_loading_info=True, **options)
    return {key: tensor for key, tensor in model.state_dict().items() if key not in info["missing_keys"]}


class HubBackbone(nn.Module):
    """An image encoder of transformers with the interface of a timm backbone.

    Its position embeddings keep their pretrained grid, and are interpolated for images of another size.
    """

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__()
        import inspect

        if not hasattr(config, "patch_size") or not hasattr(config, "hidden_size"):
            raise ValueError(f"a model of type '{config.model_type}' gives no tokens of patches")
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # the class token is used as it is
        self.model = model
        self.patch_embed = _PatchEmbed(config.patch_size)
        self.num_features = self.head_hidden_size = config.hidden_size
        parameters = inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        self.unpooled = False

    @property
    def num_prefix_tokens(self) -> None:
        """Derived from the number of tokens."""
        return None

    def reset_classifier(self, num_classes: int, global_pool: str) -> None:
        """As timm's; an encoder has no classifier to reset."""
        self.unpooled = not global_pool

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens [B, P + N, D]."""
        return self.model(pixels, **self.options).last_hidden_state

    def forward_head(self, tokens: torch.Tensor, pre_logits: bool = True) -> torch.Tensor:
        """The class token, or the mean where there is none; all tokens once unpooled."""
        if self.unpooled:
            return tokens
        return tokens.mean(dim=1) if isqrt(tokens.shape[1]) ** 2 == tokens.shape[1] else tokens[:, 0]

    def renamed(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A file's tensors under the names of this version of transformers, which can read older versions' names."""
        config = copy.deepcopy(self.model.config)
        config.num_channels = next((tensor.shape[1] for tensor in state.values() if tensor.ndim == 4), 3)
        inner = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        tensors = _weights_of(type(self.model), None, config=config, state_dict=inner)
        return {f"model.{name}": tensor for name, tensor in tensors.items()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers by name, for learning rates that differ by layer, in timm's form."""
        return {"stem": r"^model\.embeddings", "blocks": [(r".*\.layers?\.(\d+)", None), (r".*norm", (99_999,))]}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay."""
        return {name for name, _ in self.named_parameters() if "token" in name or "position_embeddings" in name}


class _PatchEmbed:
    """Holds the edge of patches, as timm's patch_embed does."""

    def __init__(self, size: int | list[int] | tuple[int, ...]) -> None:
        self.patch_size = size if isinstance(size, int) else size[0]
