"""Diffusion models made anew, from a Stable Diffusion folder, or loaded as `Diffusion.save` left them.

Weights are read from .safetensors files only, and nothing is fetched. Imported late: it imports torch.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.generation.config import OWN, GeneratorConfig
from cxrlt_ray.generation.diffusion import (
    AUTOENCODER,
    TEXT,
    TOKENIZER,
    UNET,
    Diffusion,
    TextConditions,
    require_diffusers,
)


def build(config: GeneratorConfig, findings: tuple[str, ...]) -> Diffusion:
    """A new model, with the weights of the autoencoder and checkpoint that it names.

    Raises UsageError without diffusers, and for files that are not what they should be or do not fit the resolution.
    """
    diffusers = require_diffusers()
    if config.condition == "text":
        return _from_checkpoint(config, findings)
    autoencoder = None if config.autoencoder is None else load_autoencoder(config.autoencoder)
    channels = config.patch**2 if autoencoder is None else int(autoencoder.config.latent_channels)
    levels = range(len(config.channels))
    down = tuple("AttnDownBlock2D" if level in config.attention else "DownBlock2D" for level in levels)
    up = tuple("AttnUpBlock2D" if level in config.attention else "UpBlock2D" for level in reversed(levels))
    unet = diffusers.UNet2DConditionModel(
        in_channels=channels,
        out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        mid_block_type="UNetMidBlock2D",
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        norm_num_groups=config.groups,
        attention_head_dim=config.groups,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=len(findings),
    )
    model = Diffusion(config, findings, unet, autoencoder)
    _check_edge(model)
    return model


def load(folder: Path, config: GeneratorConfig, findings: tuple[str, ...]) -> Diffusion:
    """What `save` left, in eval mode. Raises CxrltError where it cannot be read."""
    diffusers = require_diffusers()
    unet = _loaded(diffusers.UNet2DConditionModel, folder / UNET, CxrltError)
    has_autoencoder = (folder / AUTOENCODER).is_dir()
    autoencoder = _loaded(diffusers.AutoencoderKL, folder / AUTOENCODER, CxrltError) if has_autoencoder else None
    if config.condition == "findings" and unet.config.projection_class_embeddings_input_dim != len(findings):
        raise CxrltError(f"{folder / UNET} is of another number of findings than {folder}: it is damaged.")
    text = _text_conditions(str(folder / TEXT), unet, config.text == OWN) if config.condition == "text" else None
    for module in (unet, autoencoder):
        if module is not None:
            module.eval().requires_grad_(False)
    return Diffusion(config, findings, unet, autoencoder, text)


def load_autoencoder(path: str) -> Any:
    """A frozen AutoencoderKL of a folder, or of the .safetensors file in it. Raises UsageError where it is none."""
    diffusers = require_diffusers()
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    if (folder / AUTOENCODER / "config.json").is_file():
        folder = folder / AUTOENCODER
    model = _loaded(diffusers.AutoencoderKL, folder, UsageError)
    model.eval().requires_grad_(False)
    return model


def _loaded(kind: Any, folder: Path, error: type[CxrltError]) -> Any:
    """A model of diffusers, of class `kind`, in a folder. Raises `error` where it is none."""
    name = kind.__name__
    try:
        stated = json.loads((folder / "config.json").read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError):
        raise error(f"{folder} holds no {name}: give a folder that diffusers' `save_pretrained` wrote.") from None
    if stated != name:
        raise error(f"{folder} holds a {stated}, not the {name} that is needed.")
    try:
        options = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
        return kind.from_pretrained(folder, **options)
    except Exception as fault:
        reason = " ".join(str(fault).split())[:200].rstrip(".")
        raise error(f"the weights of {folder} cannot be loaded as {name} ({reason}).") from None


def _from_checkpoint(config: GeneratorConfig, findings: tuple[str, ...]) -> Diffusion:
    """The model of a Stable Diffusion folder, with its own text encoder or another of the same width."""
    if config.checkpoint is None:
        raise UsageError("a generator with `condition: text` needs a Stable Diffusion folder: --checkpoint FOLDER.")
    diffusers = require_diffusers()
    folder = Path(config.checkpoint)
    unet = _loaded(diffusers.UNet2DConditionModel, folder / UNET, UsageError)
    autoencoder = load_autoencoder(str(folder / AUTOENCODER))
    if int(unet.config.in_channels) != int(autoencoder.config.latent_channels):
        raise UsageError(
            f"{folder}: the network takes {unet.config.in_channels} channels and the autoencoder gives "
            f"{autoencoder.config.latent_channels}: they are of different models."
        )
    own = config.text == OWN
    with tempfile.TemporaryDirectory() as joined:
        text = _text_conditions(_with_tokenizer(folder, joined) if own else config.text, unet, own)
    model = Diffusion(config, findings, unet, autoencoder, text)
    _check_edge(model)
    return model


def _with_tokenizer(folder: Path, joined: str) -> str:
    """Stable Diffusion's text encoder and its tokenizer, which lie side by side, copied to one folder, `joined`."""
    if not (folder / TEXT / "config.json").is_file() or not (folder / TOKENIZER).is_dir():
        raise UsageError(f"{folder} holds no {TEXT} or no {TOKENIZER}: give a whole Stable Diffusion folder.")
    for source in (folder / TEXT, folder / TOKENIZER):
        shutil.copytree(source, joined, dirs_exist_ok=True)
    return joined


def _text_conditions(encoder: str, unet: Any, own: bool) -> TextConditions:
    """Texts by an encoder, as `unet` attends to them. Raises UsageError for one of another width."""
    from cxrlt_ray.text.encoder_spec import TextSpec
    from cxrlt_ray.text.encoders import build_text_encoder

    model = build_text_encoder(TextSpec(encoder))
    width = unet.config.cross_attention_dim
    if model.width != width:
        raise UsageError(
            f"text encoder '{encoder}' gives {model.width} numbers a token, and the network attends to {width}: take "
            "one of that width, or `text: own`."
        )
    return TextConditions(model, model.max_tokens, masked=not own)


def _check_edge(model: Diffusion) -> None:
    """Raise UsageError where an image cannot be halved as often as the models do."""
    levels = len(model.unet.config.block_out_channels) - 1
    if model.autoencoder is not None:
        levels += len(model.autoencoder.config.block_out_channels) - 1
    if model.config.resolution % 2**levels:
        raise UsageError(
            f"resolution {model.config.resolution} cannot be halved {levels} times, as this model does: take a "
            f"multiple of {2**levels}."
        )
